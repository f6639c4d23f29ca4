//! CPU time, instructions and memory.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::process::Command;
use std::rc::Rc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::sleep;

use crate::carriers::{Asking, Carrier, Client, Identities, serve};
use crate::lanes::End;
use crate::rows::Row;

/// Idle connections whose memory is measured.
const IDLE: usize = 2_000;
/// How long a thread takes at most to fall asleep: only then the kernel has counted all of its CPU
/// time.
const ASLEEP: Duration = Duration::from_millis(3);

/// User and system CPU time of both ends, in µs per operation.
pub fn cpu_time(row: &'static Row, carrier: Carrier, operations: u32) -> f64 {
    with_server(row, carrier, |client, server| {
        Box::pin(async move {
            let client = Rc::new(client);
            let mut lanes: Vec<Asking> = (0..row.lanes).map(|_| client.lane(row)).collect();
            // Buffers, windows and the allocator reach their usual state.
            run(row, &client, &mut lanes, warm_up(row, operations)).await;
            let threads = [thread_id(), server];
            let before = cpu_of(&threads).await;
            let done = run(row, &client, &mut lanes, operations).await;
            (cpu_of(&threads).await - before) / f64::from(done)
        })
    })
}

/// Instructions of both ends in user space, per operation: of a long run, without what a short one
/// takes as well.
pub fn instructions(row: &'static Row, carrier: Carrier) -> f64 {
    let short = (row.operations / 40).max(row.lanes);
    let long = 3 * short;
    let count = |operations: u32| {
        let counted = Command::new("valgrind")
            .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
            .arg(std::env::current_exe().expect("this program"))
            .args(["once", row.name, carrier.name(), &operations.to_string()])
            .output()
            .expect("valgrind");
        let words = String::from_utf8_lossy(&counted.stderr);
        let collected = words.split("Collected : ").nth(1);
        let collected = collected.and_then(|rest| rest.split_whitespace().next());
        collected
            .and_then(|number| number.parse().ok())
            .unwrap_or_else(|| panic!("{words}"))
    };
    let (few, many): (f64, f64) = (count(short), count(long));
    let more = long + warm_up(row, long) - short - warm_up(row, short);
    (many - few) / f64::from(more)
}

/// Operations before a measurement.
fn warm_up(row: &Row, operations: u32) -> u32 {
    (operations / 10).max(row.lanes)
}

/// Memory of one end of an idle connection, in bytes: both are in this process.
pub fn idle_memory(carrier: Carrier) -> f64 {
    let row = Row::named("tls-16").expect("a row");
    with_server(row, carrier, |client, _| {
        Box::pin(async move {
            let mut end = End::new(row);
            let mut lanes = Vec::with_capacity(IDLE);
            let mut before = 0;
            for number in 0..IDLE + IDLE / 10 {
                // The first ones fill what connections share.
                if number == IDLE / 10 {
                    before = resident();
                }
                let mut lane = client.open().await;
                end.ask(row, &mut lane).await.expect("an answer");
                lanes.push(lane);
            }
            (resident() - before) as f64 / IDLE as f64 / 2.0
        })
    })
}

/// As [`idle_memory`], of a fresh process.
pub fn idle_memory_of_a_process(carrier: Carrier) -> String {
    let this = std::env::current_exe().expect("this program");
    let measured = Command::new(this)
        .args(["idle", carrier.name()])
        .output()
        .expect("this program");
    String::from_utf8_lossy(&measured.stdout).trim().to_owned()
}

type Running = Pin<Box<dyn Future<Output = f64>>>;

/// Runs `measure` with a client, and the ID of the server's thread.
fn with_server(
    row: &'static Row,
    carrier: Carrier,
    measure: impl FnOnce(Client, String) -> Running,
) -> f64 {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("bind");
    let address = listener.local_addr().expect("an address");
    let identities = Identities::new();
    let config = identities.server();
    let (report, reported) = mpsc::sync_channel(1);
    let (stop, stopped) = oneshot::channel::<()>();
    let server = thread::spawn(move || {
        report.send(thread_id()).expect("the client");
        local(async {
            tokio::select! {
                () = serve(row, carrier, listener, config) => {}
                _ = stopped => {}
            }
        });
    });
    let thread = reported.recv().expect("the server");
    let figure = local(async {
        let client = Client::new(carrier, address, &identities).await;
        measure(client, thread).await
    });
    drop(stop);
    server.join().expect("the server");
    figure
}

fn local<T>(task: impl Future<Output = T>) -> T {
    let runtime = Builder::new_current_thread().enable_all().build();
    LocalSet::new().block_on(&runtime.expect("a runtime"), task)
}

/// Runs about this many operations, on all lanes at once. Returns how many exactly.
async fn run(
    row: &'static Row,
    client: &Rc<Client>,
    lanes: &mut Vec<Asking>,
    operations: u32,
) -> u32 {
    let each = operations.div_ceil(row.lanes);
    let tasks: Vec<_> = lanes
        .drain(..)
        .map(|mut lane| {
            let client = client.clone();
            spawn_local(async move {
                for _ in 0..each {
                    lane.ask(row, &client).await.expect("an answer");
                }
                lane
            })
        })
        .collect();
    for task in tasks {
        lanes.push(task.await.expect("a task"));
    }
    each * row.lanes
}

fn thread_id() -> String {
    let link = fs::read_link("/proc/thread-self").expect("/proc");
    let name = link.file_name().expect("an ID");
    name.to_string_lossy().into_owned()
}

/// CPU time of these threads, in µs.
async fn cpu_of(threads: &[String]) -> f64 {
    sleep(ASLEEP).await;
    let cpu = threads.iter().map(|thread| {
        let path = format!("/proc/self/task/{thread}/schedstat");
        let times = fs::read_to_string(path).expect("a kernel with schedstat");
        let first = times.split(' ').next().expect("a time");
        first.parse::<f64>().expect("a time")
    });
    cpu.sum::<f64>() / 1e3
}

/// Resident memory of this process, in bytes.
fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").expect("/proc");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    kib.expect("a size").parse::<usize>().expect("a size") * 1024
}
