//! The database: an in-memory key-value store with Redis' protocol (RESP2), compatible with
//! redis-cli, and the client of the other services.

use std::collections::HashMap;
use std::io::{Error, ErrorKind, Result};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, BufWriter};
use tokio::net::TcpStream;

use crate::serve::{Listen, accept, bind};

/// Size limit of one key, value or line, in bytes: larger ones close the connection.
const MAX_BYTES: usize = 64 * 1024;
/// Words of one command.
const MAX_WORDS: usize = 64;
/// Maximum number of keys: with full values they take 640 MiB, with those of the shop a few KiB.
const MAX_KEYS: usize = 10_000;
/// Timeout of a client's call, including the connect.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Idle connections that the client keeps.
const MAX_IDLE: usize = 16;

/// The products, stored as `product:1` and so on.
const PRODUCTS: [(&str, u32); 6] = [
    ("ferry ticket", 1250),
    ("oar", 8900),
    ("life vest", 4500),
    ("rope, 20 m", 2300),
    ("lantern", 3100),
    ("river map", 600),
];

#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    listen: Listen,
}

/// A connection, buffered in both directions.
type Wire = BufReader<BufWriter<TcpStream>>;

fn wire(stream: TcpStream) -> Wire {
    BufReader::new(BufWriter::new(stream))
}

type Values = Arc<Mutex<HashMap<Vec<u8>, Vec<u8>>>>;

/// Serves until SIGTERM; open connections still get responses to pending commands.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let values: Values = Arc::default();
    for (index, (name, cents)) in PRODUCTS.iter().enumerate() {
        let product = serde_json::json!({ "id": index + 1, "name": name, "cents": cents });
        let key = format!("product:{}", index + 1);
        lock(&values).insert(key.into_bytes(), product.to_string().into_bytes());
    }
    let listener = bind("store", args.listen.listen).await?;
    accept(listener, |stream| {
        let values = values.clone();
        tokio::spawn(async move {
            // A client that disconnects or violates the protocol only loses its connection.
            let _client_gone = converse(stream, values).await;
        });
    })
    .await
}

fn lock(values: &Values) -> MutexGuard<'_, HashMap<Vec<u8>, Vec<u8>>> {
    // A panic cannot leave the map half changed.
    values.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn converse(stream: TcpStream, values: Values) -> Result<()> {
    let mut stream = wire(stream);
    while let Some(command) = read_command(&mut stream).await? {
        let quit = command
            .first()
            .is_some_and(|word| word.eq_ignore_ascii_case(b"quit"));
        if !command.is_empty() {
            let reply = execute(&command, &values);
            stream.write_all(&reply).await?;
        }
        // Flush the responses to pipelined commands together.
        if quit || stream.buffer().is_empty() {
            stream.flush().await?;
        }
        if quit {
            break;
        }
    }
    Ok(())
}

fn execute(command: &[Vec<u8>], values: &Values) -> Vec<u8> {
    let mut values = lock(values);
    let words: Vec<&[u8]> = command.iter().map(Vec::as_slice).collect();
    let name = words[0].to_ascii_lowercase();
    match (name.as_slice(), &words[1..]) {
        (b"ping", []) => simple("PONG"),
        (b"ping" | b"echo", [text]) => bulk(text),
        (b"quit" | b"select" | b"client", _) => simple("OK"),
        (b"command", _) => b"*0\r\n".to_vec(),
        (b"get", [key]) => values
            .get(*key)
            .map_or(b"$-1\r\n".to_vec(), |value| bulk(value)),
        (b"exists", [key]) => integer(usize::from(values.contains_key(*key))),
        (b"del", keys) => integer(keys.iter().filter_map(|key| values.remove(*key)).count()),
        (b"dbsize", []) => integer(values.len()),
        (b"set" | b"append", [key, _])
            if !values.contains_key(*key) && values.len() >= MAX_KEYS =>
        {
            error(&format!("OOM {MAX_KEYS} keys are all it keeps"))
        }
        (b"set", [key, value]) => {
            values.insert(key.to_vec(), value.to_vec());
            simple("OK")
        }
        (b"append", [key, more]) => {
            let value = values.entry(key.to_vec()).or_default();
            if value.len() + more.len() > MAX_BYTES {
                return error(&format!("ERR a value has at most {MAX_BYTES} bytes"));
            }
            value.extend_from_slice(more);
            integer(value.len())
        }
        (b"get" | b"set" | b"append" | b"exists" | b"echo" | b"ping" | b"dbsize", _) => {
            error("ERR wrong number of arguments")
        }
        _ => error("ERR unknown command"),
    }
}

fn simple(text: &str) -> Vec<u8> {
    format!("+{text}\r\n").into_bytes()
}

fn error(text: &str) -> Vec<u8> {
    format!("-{text}\r\n").into_bytes()
}

fn integer(number: usize) -> Vec<u8> {
    format!(":{number}\r\n").into_bytes()
}

fn bulk(bytes: &[u8]) -> Vec<u8> {
    let mut reply = format!("${}\r\n", bytes.len()).into_bytes();
    reply.extend_from_slice(bytes);
    reply.extend_from_slice(b"\r\n");
    reply
}

/// The next command, as an array or as an inline command; `None` at the end of the connection.
async fn read_command(stream: &mut Wire) -> Result<Option<Vec<Vec<u8>>>> {
    let Some(line) = read_line(stream).await? else {
        return Ok(None);
    };
    let Some(count) = line.strip_prefix(b"*") else {
        let words = line.split(u8::is_ascii_whitespace);
        return Ok(Some(
            words
                .filter(|word| !word.is_empty())
                .map(<[u8]>::to_vec)
                .collect(),
        ));
    };
    let count = length(count, MAX_WORDS)?;
    let mut words = Vec::with_capacity(count);
    for _ in 0..count {
        let line = read_line(stream).await?.ok_or(ErrorKind::UnexpectedEof)?;
        words.push(read_bulk(stream, &line).await?);
    }
    Ok(Some(words))
}

async fn read_line(stream: &mut Wire) -> Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let limit = MAX_BYTES as u64;
    if stream.take(limit).read_until(b'\n', &mut line).await? == 0 {
        return Ok(None);
    }
    if line.pop() != Some(b'\n') {
        return Err(Error::new(ErrorKind::InvalidData, "an endless line"));
    }
    line.pop_if(|last| *last == b'\r');
    Ok(Some(line))
}

async fn read_bulk(stream: &mut Wire, line: &[u8]) -> Result<Vec<u8>> {
    let Some(size) = line.strip_prefix(b"$") else {
        return Err(Error::new(ErrorKind::InvalidData, "expected a bulk string"));
    };
    let mut word = vec![0; length(size, MAX_BYTES)? + 2];
    stream.read_exact(&mut word).await?;
    word.truncate(word.len() - 2);
    Ok(word)
}

fn length(digits: &[u8], limit: usize) -> Result<usize> {
    std::str::from_utf8(digits)
        .ok()
        .and_then(|digits| digits.parse().ok())
        .filter(|length| *length <= limit)
        .ok_or_else(|| Error::new(ErrorKind::InvalidData, "a length out of bounds"))
}

/// A client with a connection pool.
pub struct Client {
    address: String,
    idle: Mutex<Vec<Wire>>,
}

impl Client {
    pub fn new(address: String) -> Self {
        Self {
            address,
            idle: Mutex::default(),
        }
    }

    pub async fn get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        self.call(&[b"GET", key.as_bytes()]).await
    }

    pub async fn set(&self, key: &str, value: &str) -> Result<()> {
        self.call(&[b"SET", key.as_bytes(), value.as_bytes()])
            .await
            .map(drop)
    }

    /// Appends, and returns the value's new length.
    pub async fn append(&self, key: &str, value: &str) -> Result<usize> {
        let length = self
            .call(&[b"APPEND", key.as_bytes(), value.as_bytes()])
            .await?;
        self::length(&length.unwrap_or_default(), usize::MAX)
    }

    async fn call(&self, words: &[&[u8]]) -> Result<Option<Vec<u8>>> {
        let mut command = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            command.extend(bulk(word));
        }
        let kept = self
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        if let Some(stream) = kept {
            match self.ask(stream, &command).await {
                // The pooled connection was closed while idle. The command is retried; those of the
                // shop are safe to repeat.
                Err(gone) if gone.kind() != ErrorKind::Other => {}
                answered => return answered,
            }
        }
        let connect = TcpStream::connect(&self.address);
        let stream = tokio::time::timeout(CALL_TIMEOUT, connect).await??;
        stream.set_nodelay(true)?;
        self.ask(wire(stream), &command).await
    }

    async fn ask(&self, mut stream: Wire, command: &[u8]) -> Result<Option<Vec<u8>>> {
        let asked = async {
            stream.write_all(command).await?;
            stream.flush().await?;
            let line = read_line(&mut stream)
                .await?
                .ok_or(ErrorKind::UnexpectedEof)?;
            match line.first() {
                Some(b'+' | b':') => Ok(Some(line[1..].to_vec())),
                Some(b'$') if line.as_slice() == b"$-1" => Ok(None),
                Some(b'$') => read_bulk(&mut stream, &line).await.map(Some),
                _ => Err(Error::other(String::from_utf8_lossy(&line).into_owned())),
            }
        };
        let reply = tokio::time::timeout(CALL_TIMEOUT, asked).await??;
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MAX_IDLE {
            idle.push(stream);
        }
        Ok(reply)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The response of the store to `asked`, which is sent at once.
    async fn answer(asked: &[u8]) -> Vec<u8> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let _refused = converse(stream, Values::default()).await;
        });
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(asked).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        // A rejected client may get a reset; the test checks the bytes before it.
        let _reset = stream.read_to_end(&mut answer).await;
        answer
    }

    #[tokio::test]
    async fn pipelined_commands_are_answered_in_order_in_both_notations() {
        let asked = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$2\r\nab\r\nAPPEND k cd\r\nget k\nGET none\r\n";
        assert_eq!(answer(asked).await, b"+OK\r\n:4\r\n$4\r\nabcd\r\n$-1\r\n");
    }

    #[tokio::test]
    async fn lengths_out_of_bounds_end_the_connection_without_an_allocation() {
        for asked in [
            "*9999999999\r\n",
            "*1\r\n$999999999\r\n",
            "*-1\r\n",
            "*1\r\nx\r\n",
        ] {
            assert_eq!(answer(asked.as_bytes()).await, b"", "{asked:?}");
        }
    }

    #[tokio::test]
    async fn a_value_is_bounded() {
        let filled = Values::default();
        lock(&filled).insert(b"k".to_vec(), vec![0; MAX_BYTES]);
        let command = [b"APPEND".to_vec(), b"k".to_vec(), b"x".to_vec()];
        assert!(execute(&command, &filled).starts_with(b"-ERR"));
    }
}
