//! Streams of the h2 crate: one for each request, or one for the bytes of a lane.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, header};
use naru_proxy::upstream::http2::{CONNECTION_WINDOW, MAX_FRAME, MAX_SEND_BUFFER, STREAM_WINDOW};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::spawn_local;

use crate::carriers::answer;
use crate::lanes::{Lane, REQUEST_HEAD, RESPONSE_HEAD};
use crate::rows::Row;

pub async fn connect(stream: Lane) -> SendRequest<Bytes> {
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .max_send_buffer_size(MAX_SEND_BUFFER)
        .enable_push(false);
    let (sender, connection) = builder.handshake(stream).await.expect("HTTP/2");
    spawn_local(connection);
    sender.ready().await.expect("HTTP/2")
}

async fn accept(stream: Lane) -> h2::server::Connection<Lane, Bytes> {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .max_send_buffer_size(MAX_SEND_BUFFER);
    builder.handshake(stream).await.expect("HTTP/2")
}

/// The client's end of a lane whose requests become HTTP/2.
pub struct Asking {
    sender: SendRequest<Bytes>,
    fields: Fields,
    body: Vec<u8>,
    /// The head of the response, as the app gets it.
    head: Vec<u8>,
}

/// The fields of a head that has been parsed, which the sidecar does whatever carries it.
type Fields = Vec<(&'static str, &'static str)>;

fn fields(head: &'static str) -> Fields {
    let lines = head.split("\r\n").skip(1);
    lines.filter_map(|line| line.split_once(": ")).collect()
}

fn map(fields: &Fields) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(fields.len());
    for (name, value) in fields {
        let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
        let value = HeaderValue::from_bytes(value.as_bytes()).expect("a value");
        map.append(name, value);
    }
    map
}

/// Appends fields as HTTP/1 has them.
fn write(map: &HeaderMap, out: &mut Vec<u8>) {
    for (name, value) in map {
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

impl Asking {
    pub fn new(sender: SendRequest<Bytes>, row: &Row) -> Self {
        Self {
            sender,
            fields: fields(REQUEST_HEAD),
            body: vec![b'm'; row.request - REQUEST_HEAD.len()],
            head: Vec::new(),
        }
    }

    /// One exchange.
    pub async fn ask(&mut self, row: &Row) -> io::Result<()> {
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.headers_mut() = map(&self.fields);
        let host = request.headers_mut().remove(header::HOST).expect("a host");
        let uri = http::Uri::builder()
            .scheme("http")
            .authority(host.as_bytes())
            .path_and_query("/api/orders/4711?full=true")
            .build();
        *request.uri_mut() = uri.expect("a URI");
        poll_fn(|cx| self.sender.poll_ready(cx))
            .await
            .map_err(io::Error::other)?;
        let sent = self.sender.send_request(request, false);
        let (response, mut send) = sent.map_err(io::Error::other)?;
        send_all(&mut send, &self.body, row.piece).await?;
        let response = response.await.map_err(io::Error::other)?;
        self.head.clear();
        self.head.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
        write(response.headers(), &mut self.head);
        let received = receive_all(response.into_body()).await?;
        assert_eq!(received, row.response - RESPONSE_HEAD.len());
        Ok(())
    }
}

/// The server's end of [`Asking`].
pub async fn serve(row: &'static Row, stream: Lane) {
    let mut connection = accept(stream).await;
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        spawn_local(Box::pin(async move {
            let (parts, body) = request.into_parts();
            let mut head = Vec::with_capacity(REQUEST_HEAD.len());
            head.extend_from_slice(parts.method.as_str().as_bytes());
            head.push(b' ');
            let path = parts.uri.path_and_query().expect("a path");
            head.extend_from_slice(path.as_str().as_bytes());
            head.extend_from_slice(b" HTTP/1.1\r\nhost: ");
            let host = parts.uri.authority().expect("an authority");
            head.extend_from_slice(host.as_str().as_bytes());
            head.extend_from_slice(b"\r\n");
            write(&parts.headers, &mut head);
            assert_eq!(head.len(), REQUEST_HEAD.len());
            receive_all(body).await?;
            let mut response = Response::new(());
            let mut headers = map(&fields(RESPONSE_HEAD));
            // h2 compares it with what arrives.
            let length = row.response - RESPONSE_HEAD.len();
            headers.insert(header::CONTENT_LENGTH, length.into());
            *response.headers_mut() = headers;
            let sent = respond.send_response(response, false);
            let body = vec![b'm'; length];
            send_all(&mut sent.map_err(io::Error::other)?, &body, row.piece).await
        }));
    }
}

async fn send_all(stream: &mut SendStream<Bytes>, bytes: &[u8], piece: usize) -> io::Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let room = poll_fn(|cx| poll_room(stream, rest.len().min(piece), cx)).await?;
        let (part, after) = rest.split_at(room);
        rest = after;
        let sent = stream.send_data(Bytes::copy_from_slice(part), rest.is_empty());
        sent.map_err(io::Error::other)?;
    }
    Ok(())
}

/// How many of `length` bytes may be sent.
fn poll_room(
    stream: &mut SendStream<Bytes>,
    length: usize,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    stream.reserve_capacity(length);
    loop {
        match stream.capacity() {
            0 => match ready!(stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            },
            room => return Poll::Ready(Ok(room.min(length))),
        }
    }
}

async fn receive_all(mut body: RecvStream) -> io::Result<usize> {
    let mut received = 0;
    while let Some(data) = body.data().await {
        let length = data.map_err(io::Error::other)?.len();
        received += length;
        let released = body.flow_control().release_capacity(length);
        released.map_err(io::Error::other)?;
    }
    Ok(received)
}

/// A lane for bytes, on a stream that lasts as long as the lane.
pub async fn open(sender: SendRequest<Bytes>) -> Lane {
    let mut sender = sender.ready().await.expect("HTTP/2");
    let request = Request::post("http://orders.shop/").body(());
    let opened = sender.send_request(request.expect("a request"), false);
    let (response, send) = opened.expect("a stream");
    Box::pin(ByteStream {
        send,
        receive: Receive::Head(response),
        data: Bytes::new(),
    })
}

/// The server's end of [`open`].
pub async fn serve_bytes(row: &'static Row, stream: Lane) {
    let mut connection = accept(stream).await;
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let send = respond.send_response(Response::new(()), false);
        let lane = ByteStream {
            send: send.expect("a response"),
            receive: Receive::Body(request.into_body()),
            data: Bytes::new(),
        };
        spawn_local(answer(row, Box::pin(lane)));
    }
}

struct ByteStream {
    send: SendStream<Bytes>,
    receive: Receive,
    /// Received, but not read yet.
    data: Bytes,
}

enum Receive {
    Head(ResponseFuture),
    Body(RecvStream),
}

impl AsyncRead for ByteStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.data.is_empty() {
            match &mut this.receive {
                Receive::Head(response) => {
                    let response = ready!(Pin::new(response).poll(cx)).map_err(io::Error::other)?;
                    this.receive = Receive::Body(response.into_body());
                }
                Receive::Body(body) => match ready!(body.poll_data(cx)) {
                    None => return Poll::Ready(Ok(())),
                    Some(data) => {
                        this.data = data.map_err(io::Error::other)?;
                        let released = body.flow_control().release_capacity(this.data.len());
                        released.map_err(io::Error::other)?;
                    }
                },
            }
        }
        let part = this.data.split_to(this.data.len().min(buf.remaining()));
        buf.put_slice(&part);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ByteStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let room = ready!(poll_room(&mut self.send, bytes.len(), cx))?;
        let part = Bytes::copy_from_slice(&bytes[..room]);
        self.send.send_data(part, false).map_err(io::Error::other)?;
        Poll::Ready(Ok(room))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ended = self.send.send_data(Bytes::new(), true);
        Poll::Ready(ended.map_err(io::Error::other))
    }
}
