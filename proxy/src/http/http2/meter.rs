//! Meters the frames of a downstream connection by their cost, and slows down reading once they
//! cost too much.
//!
//! In: the bytes of the connection, in both directions. Out: the same bytes. PING, SETTINGS,
//! PRIORITY, tiny WINDOW_UPDATEs and refused streams cost a client almost nothing, and the proxy a
//! turn of the worker that others wait for. Each takes tokens; a client's requests and their
//! responses return some. Without tokens the connection is not read, which affects only that
//! client.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::observe::metrics::Metrics;
use crate::wire::detect::HTTP2_PREFACE;

/// Size of the token bucket.
const BURST: i64 = 10_000;
/// Tokens that are refilled each second.
const RATE: i64 = 2_000;

const FRAME_COST: i64 = 1;
/// A WINDOW_UPDATE of less than [`TINY`] bytes: each one makes the proxy send a frame that is
/// mostly header.
const TINY_WINDOW_COST: i64 = 4;
const TINY: u32 = 128;
/// The proxy acknowledges them, and applies them to every stream.
const SETTINGS_COST: i64 = 10;
/// A stream without a valid request, or a refused one. [`BURST`] is enough for as many as a client
/// may have at once.
const STREAM_COST: i64 = 8;
/// Returned in addition for each request, and for each frame of a response: clients answer frames
/// with PINGs and WINDOW_UPDATEs.
const REQUEST_CREDIT: i64 = 4;
const RESPONSE_CREDIT: i64 = 2;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;
/// Length, type, flags and stream ID.
const FRAME_HEAD: usize = 9;

/// The tokens that a connection has left.
pub(super) struct Meter {
    tokens: Cell<i64>,
    refilled: Cell<Instant>,
    /// 0 for a peer: the connection does not show which client a head came from.
    stream_cost: i64,
    metrics: Metrics,
}

impl Meter {
    /// `is_shared`: the connection carries the requests of many clients.
    pub fn new(metrics: &Metrics, is_shared: bool) -> Rc<Self> {
        Rc::new(Self {
            tokens: Cell::new(BURST),
            refilled: Cell::new(Instant::now()),
            stream_cost: if is_shared { 0 } else { STREAM_COST },
            metrics: metrics.clone(),
        })
    }

    /// Returns the cost of a stream that is a valid request.
    pub fn accepted(&self) {
        self.add(self.stream_cost + REQUEST_CREDIT);
    }

    /// Charges a request that is refused for its head.
    pub fn refused(&self) {
        self.add(-(self.stream_cost + REQUEST_CREDIT + RESPONSE_CREDIT));
    }

    fn add(&self, tokens: i64) {
        self.tokens.set((self.tokens.get() + tokens).min(BURST));
    }

    /// Until when the connection is not read. The clock is read only if the tokens are used up.
    fn pause(&self) -> Option<Instant> {
        if self.tokens.get() >= 0 {
            return None;
        }
        let now = Instant::now();
        let passed = now.duration_since(self.refilled.get()).as_micros();
        let tokens = i64::try_from(passed)
            .unwrap_or(i64::MAX)
            .saturating_mul(RATE)
            / 1_000_000;
        if tokens > 0 {
            self.refilled.set(now);
            self.add(tokens.min(BURST * 2));
        }
        let owed = u64::try_from(-self.tokens.get()).unwrap_or(0);
        (owed > 0).then(|| now + Duration::from_micros(owed * 1_000_000 / RATE.unsigned_abs()))
    }
}

/// A connection with a [`Meter`].
pub(super) struct Metered<S> {
    io: S,
    meter: Rc<Meter>,
    received: Frames,
    /// The highest stream ID that the client has opened.
    opened: u32,
    sent: Frames,
    pause: Option<Pin<Box<Sleep>>>,
}

impl<S> Metered<S> {
    pub fn new(io: S, meter: &Rc<Meter>) -> Self {
        Self {
            io,
            meter: meter.clone(),
            received: Frames {
                left: HTTP2_PREFACE.len(),
                ..Frames::default()
            },
            opened: 0,
            sent: Frames::default(),
            pause: None,
        }
    }

    fn poll_tokens(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Some(until) = self.meter.pause() {
            let meter = &self.meter;
            let pause = self.pause.get_or_insert_with(|| {
                tracing::debug!("a client's HTTP/2 frames cost too much: it is read slowly");
                meter.metrics.http2_slowed();
                Box::pin(sleep_until(until))
            });
            if pause.deadline() < until {
                pause.as_mut().reset(until);
            }
            ready!(pause.as_mut().poll(cx));
        }
        self.pause = None;
        Poll::Ready(())
    }

    fn count_sent(&mut self, bytes: &[u8]) {
        let mut answered = 0;
        self.sent.follow(bytes, |frame| {
            answered += i64::from(matches!(frame.kind, DATA | HEADERS));
        });
        if answered > 0 {
            self.meter.add(answered * RESPONSE_CREDIT);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.meter.tokens.get() < 0 || this.pause.is_some() {
            ready!(this.poll_tokens(cx));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        let (mut cost, opened, stream_cost) = (0, &mut this.opened, this.meter.stream_cost);
        this.received.follow(&buf.filled()[before..], |frame| {
            cost += match frame.kind {
                DATA if frame.length > 0 => 0,
                HEADERS if frame.stream > *opened => {
                    *opened = frame.stream;
                    stream_cost
                }
                HEADERS => 0,
                SETTINGS => SETTINGS_COST,
                WINDOW_UPDATE if frame.increment < TINY => TINY_WINDOW_COST,
                _ => FRAME_COST,
            };
        });
        if cost > 0 {
            this.meter.add(-cost);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.io).poll_write(cx, bytes))?;
        this.count_sent(&bytes[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.io).poll_write_vectored(cx, pieces))?;
        let mut left = written;
        for piece in pieces {
            let length = piece.len().min(left);
            this.count_sent(&piece[..length]);
            left -= length;
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

/// Parses frames across the pieces that they arrive in.
#[derive(Default)]
struct Frames {
    /// The received bytes of a frame's header, and of a WINDOW_UPDATE's payload.
    head: [u8; FRAME_HEAD + 4],
    have: usize,
    /// The rest of a payload, in bytes.
    left: usize,
}

struct Frame {
    kind: u8,
    length: usize,
    stream: u32,
    /// Of a WINDOW_UPDATE.
    increment: u32,
}

impl Frames {
    fn follow(&mut self, mut bytes: &[u8], mut each: impl FnMut(&Frame)) {
        while !bytes.is_empty() {
            if self.left > 0 {
                let skipped = self.left.min(bytes.len());
                self.left -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            let wanted = self.wanted();
            let taken = (wanted - self.have).min(bytes.len());
            self.head[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            if self.have == self.wanted() {
                let frame = self.frame();
                each(&frame);
                self.left = (frame.length + FRAME_HEAD).saturating_sub(self.have);
                self.have = 0;
            }
        }
    }

    fn wanted(&self) -> usize {
        let is_window = self.have >= FRAME_HEAD && self.head[..4] == [0, 0, 4, WINDOW_UPDATE];
        FRAME_HEAD + if is_window { 4 } else { 0 }
    }

    fn frame(&self) -> Frame {
        let [a, b, c, kind, _, s0, s1, s2, s3, i0, i1, i2, i3] = self.head;
        Frame {
            kind,
            length: u32::from_be_bytes([0, a, b, c]) as usize,
            stream: u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]),
            increment: u32::from_be_bytes([i0 & 0x7f, i1, i2, i3]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_recognized_however_they_are_split() {
        let mut bytes = vec![0, 0, 3, DATA, 0, 0, 0, 0, 1, 7, 7, 7];
        bytes.extend_from_slice(&[0, 0, 4, WINDOW_UPDATE, 0, 0, 0, 0, 0, 0, 0, 1, 2]);
        bytes.extend_from_slice(&[0, 0, 0, SETTINGS, 1, 0, 0, 0, 0]);
        bytes.extend_from_slice(&[0, 0, 1, HEADERS, 5, 0, 0, 0, 9, 0x82]);
        for cut in 1..=bytes.len() {
            let mut frames = Frames::default();
            let mut seen = Vec::new();
            for piece in bytes.chunks(cut) {
                frames.follow(piece, |frame| {
                    let increment = (frame.kind == WINDOW_UPDATE).then_some(frame.increment);
                    seen.push((frame.kind, frame.length, frame.stream, increment));
                });
            }
            let expected = [
                (DATA, 3, 1, None),
                (WINDOW_UPDATE, 4, 0, Some(258)),
                (SETTINGS, 0, 0, None),
                (HEADERS, 1, 9, None),
            ];
            assert_eq!(seen, expected, "{cut}");
        }
    }

    #[test]
    fn spent_tokens_are_refilled_by_time_and_by_requests() {
        let meter = Meter::new(&Metrics::default(), false);
        assert!(meter.pause().is_none());
        meter.add(-BURST - 10 * RATE);
        let until = meter.pause().expect("a pause");
        assert!(until <= Instant::now() + Duration::from_secs(10));
        meter.refilled.set(Instant::now() - Duration::from_secs(10));
        assert!(meter.pause().is_none());
        meter.add(-BURST - RATE);
        for _ in 0..=(BURST + RATE) / (STREAM_COST + REQUEST_CREDIT) {
            meter.accepted();
        }
        assert!(meter.pause().is_none());
    }

    #[test]
    fn refused_requests_cost_tokens_and_answered_ones_do_not() {
        let request = |meter: &Meter| {
            meter.add(-STREAM_COST);
            meter.accepted();
            meter.add(RESPONSE_CREDIT);
        };
        let meter = Meter::new(&Metrics::default(), false);
        meter.add(-BURST);
        request(&meter);
        assert!(meter.tokens.get() > 0);
        meter.add(-meter.tokens.get());
        request(&meter);
        meter.refused();
        assert_eq!(meter.tokens.get(), -STREAM_COST);
    }
}
