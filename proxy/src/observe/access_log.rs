//! The access log: one JSON object a line on standard output. Off by default.
//!
//! In: finished requests, from any worker. Out: lines, written by a separate thread, so that a slow
//! reader of standard output delays no request: lines beyond the queue's capacity are dropped and
//! counted.

use std::io::Write;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::observe::metrics::{HttpVersion, Metrics};
use crate::observe::reason::Reason;
use crate::socket::Direction;

/// Capacity of the queue, in lines: about 2 MiB, and what a worker finishes in a fraction of a
/// second.
const QUEUE: usize = 8_192;
/// Longest text in one field, in bytes. Longer texts are cut.
const MAX_FIELD: usize = 2_048;
/// Bytes per write while lines keep coming.
const BATCH: usize = 64 * 1024;

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct AccessLog {
    on: Option<On>,
}

#[derive(Clone, Debug)]
struct On {
    lines: SyncSender<Vec<u8>>,
    metrics: Metrics,
}

/// The writing thread.
#[derive(Debug)]
pub struct Writer {
    done: Receiver<()>,
}

/// One finished request.
#[derive(Debug)]
pub struct Entry<'a> {
    pub direction: Direction,
    pub version: HttpVersion,
    pub client: &'a str,
    pub method: &'a str,
    pub authority: &'a str,
    /// Path without the query, which may carry secrets.
    pub path: &'a str,
    pub service: &'a str,
    pub route: &'a str,
    pub rule: &'a str,
    /// Address of the endpoint that answered.
    pub endpoint: Option<std::net::SocketAddr>,
    pub status: Option<u16>,
    pub reason: Option<Reason>,
    pub attempts: u32,
    pub elapsed: Duration,
}

/// An [`Entry`] in its serialized form.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    direction: &'static str,
    protocol: &'static str,
    client: &'a str,
    method: &'a str,
    authority: &'a str,
    path: &'a str,
    service: &'a str,
    route: &'a str,
    rule: &'a str,
    endpoint: Option<std::net::SocketAddr>,
    status: Option<u16>,
    reason: Option<&'static str>,
    attempts: u32,
    duration_ms: f64,
}

impl AccessLog {
    /// A log that discards everything.
    pub fn off() -> Self {
        Self { on: None }
    }

    /// A log to `output`. The writer ends when every clone has been dropped.
    pub fn start(
        metrics: Metrics,
        output: impl Write + Send + 'static,
    ) -> std::io::Result<(Self, Writer)> {
        let (lines, queue) = sync_channel(QUEUE);
        let (finished, done) = sync_channel(1);
        std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || {
                write_lines(&queue, output);
                // `finish` may not have been called.
                let _ = finished.try_send(());
            })?;
        let on = On { lines, metrics };
        Ok((Self { on: Some(on) }, Writer { done }))
    }

    pub fn enabled(&self) -> bool {
        self.on.is_some()
    }

    /// Never blocks: lines beyond the queue's capacity are counted and dropped.
    pub fn write(&self, entry: &Entry<'_>) {
        let Some(on) = &self.on else { return };
        let Ok(mut line) = serde_json::to_vec(&Line::new(entry, SystemTime::now())) else {
            return on.metrics.access_log_dropped();
        };
        line.push(b'\n');
        if on.lines.try_send(line).is_err() {
            on.metrics.access_log_dropped();
        }
    }
}

impl Writer {
    /// Waits until everything has been written, at most `patience`. All logs must have been
    /// dropped. False: timed out.
    pub fn finish(self, patience: Duration) -> bool {
        !matches!(
            self.done.recv_timeout(patience),
            Err(RecvTimeoutError::Timeout)
        )
    }
}

impl<'a> Line<'a> {
    fn new(entry: &Entry<'a>, now: SystemTime) -> Self {
        Self {
            time: rfc3339(now),
            direction: entry.direction.as_str(),
            protocol: entry.version.as_str(),
            client: cut(entry.client),
            method: cut(entry.method),
            authority: cut(entry.authority),
            path: cut(entry.path),
            service: cut(entry.service),
            route: cut(entry.route),
            rule: cut(entry.rule),
            endpoint: entry.endpoint,
            status: entry.status,
            reason: entry.reason.map(Reason::as_str),
            attempts: entry.attempts,
            duration_ms: (entry.elapsed.as_secs_f64() * 1e6).round() / 1e3,
        }
    }
}

/// Writes until all senders are dropped. Lines that standard output rejects are lost: there is no
/// other place to report that.
fn write_lines(queue: &Receiver<Vec<u8>>, mut output: impl Write) {
    let mut batch = Vec::with_capacity(BATCH);
    while let Ok(line) = queue.recv() {
        batch.extend_from_slice(&line);
        while batch.len() < BATCH
            && let Ok(line) = queue.try_recv()
        {
            batch.extend_from_slice(&line);
        }
        let _ = output.write_all(&batch).and_then(|()| output.flush());
        batch.clear();
    }
}

/// At most [`MAX_FIELD`] bytes of `text`, whole characters only.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_FIELD)]
}

/// As `2026-01-31T23:59:59.123Z`.
fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        second / 3_600,
        second / 60 % 60,
        second % 60,
        since.subsec_millis()
    )
}

/// Year, month and day of a day after 1970-01-01 (Howard Hinnant's `civil_from_days`: years begin
/// in March, so that the leap day is the last).
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::{Arc, Mutex};

    fn entry(path: &str) -> Entry<'_> {
        Entry {
            direction: Direction::Outbound,
            version: HttpVersion::Http1,
            client: "",
            method: "GET",
            authority: "web",
            path,
            service: "shop/web:80",
            route: "shop/web",
            rule: "0",
            endpoint: Some("10.0.0.1:8080".parse().unwrap()),
            status: Some(503),
            reason: Some(Reason::NoEndpoint),
            attempts: 2,
            elapsed: Duration::from_micros(1_234),
        }
    }

    #[derive(Clone, Default)]
    struct Output(Arc<Mutex<Vec<u8>>>);

    impl Write for Output {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// Blocks until it is released.
    struct Stuck(Receiver<()>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let _ = self.0.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn every_entry_is_one_line_of_json() {
        let output = Output::default();
        let (log, writer) = AccessLog::start(Metrics::default(), output.clone()).unwrap();
        log.write(&entry("/a"));
        log.write(&entry("/\"\n\u{1}\u{2028}"));
        drop(log);
        assert!(writer.finish(Duration::from_secs(10)));
        let text = String::from_utf8(output.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["status"], 503);
        assert_eq!(lines[0]["reason"], "no-endpoint");
        assert_eq!(lines[0]["duration_ms"], 1.234);
        assert_eq!(lines[1]["path"], "/\"\n\u{1}\u{2028}");
    }

    #[test]
    fn a_stuck_reader_delays_nothing_and_dropped_lines_are_counted() {
        let (let_go, stuck) = sync_channel(0);
        let metrics = Metrics::default();
        let (log, _writer) = AccessLog::start(metrics.clone(), Stuck(stuck)).unwrap();
        for _ in 0..QUEUE * 2 {
            log.write(&entry("/"));
        }
        drop(let_go);
        let text = String::from_utf8(metrics.render().unwrap()).unwrap();
        let dropped = text
            .lines()
            .find_map(|line| line.strip_prefix("naru_access_log_dropped_total "))
            .unwrap();
        // The writer has taken one batch before it blocked.
        assert!(dropped.parse::<usize>().unwrap() > QUEUE / 2, "{dropped}");
    }

    #[test]
    fn times_are_human_readable() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, "2000-02-28T23:59:59.000Z"),
            (951_868_799, "2000-02-29T23:59:59.000Z"),
            (1_709_251_200, "2024-03-01T00:00:00.000Z"),
            (4_102_444_800, "2100-01-01T00:00:00.000Z"),
        ] {
            let time = UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(rfc3339(time), expected);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_escaped_and_bounded(path in ".{0,3000}") {
            let line = serde_json::to_string(&Line::new(&entry(&path), UNIX_EPOCH)).unwrap();
            prop_assert!(!line.contains('\n'));
            let read: serde_json::Value = serde_json::from_str(&line).unwrap();
            let written = read["path"].as_str().unwrap();
            prop_assert!(path.starts_with(written) && written.len() <= MAX_FIELD);
        }

        #[test]
        fn days_follow_each_other(days in 0_u64..100_000) {
            let (year, month, day) = civil(days);
            let next = civil(days + 1);
            let follows = next == (year, month, day + 1)
                || next == (year, month + 1, 1)
                || (month, day) == (12, 31) && next == (year + 1, 1, 1);
            prop_assert!(follows);
        }
    }
}
