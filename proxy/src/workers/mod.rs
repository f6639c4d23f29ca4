//! A data worker: one thread, one current-thread runtime, its own pools. The first one also accepts
//! connections, and hands each to the worker that has the fewest.

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use naru_listen::{Bounds, Place, Places};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::LocalSet;
use tokio::time::sleep;

use crate::config::{Config, Limits};
use crate::drain::Drain;
use crate::memory::{self, Charge, Use};
use crate::session::worker::{Shared, Worker};
use crate::socket::{self, Direction, Listener, Listeners};
use crate::{inbound, outbound};

#[cfg(test)]
mod tests;

/// Accepted connections that wait in a worker's queue.
const HANDED_OVER: usize = 256;
/// Of this many inbound connections, one more is kept for clients that prove an identity.
const UNPROVEN_OF: (usize, usize) = (4, 5);
/// Inbound connections that wait for their first bytes, in addition to those that are carried: a
/// fraction of the latter …
const WAITING_OF: (usize, usize) = (1, 10);
/// … but room for a burst.
const MIN_WAITING: usize = 64;
/// How long inbound connections are still accepted after the shutdown has started: by then load
/// balancers have learned that this pod is terminating.
const LATE_ARRIVALS: Duration = Duration::from_secs(1);
/// Wait after an error of accept, whose cause is the machine: no file descriptors, no memory.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);
/// How often such an error is logged.
const ACCEPT_ERROR_EVERY: Duration = Duration::from_secs(1);

/// Limits of inbound connections.
pub fn places(limits: &Limits) -> Places {
    let all = limits.max_connections;
    let part = |(of, whole): (usize, usize)| (all.saturating_mul(of) / whole).max(1);
    let waiting = part(WAITING_OF).max(MIN_WAITING);
    Places::new(Bounds {
        waiting,
        waiting_of_source: waiting,
        taken: part(UNPROVEN_OF),
        taken_of_source: limits.max_connections_per_source,
        spare: 0,
        all,
        of_source: limits.max_connections_per_source,
    })
}

/// The running workers.
#[derive(Debug)]
pub struct Workers {
    /// Closed by the first worker that ends.
    alive: watch::Receiver<()>,
}

/// Reports a worker's end, also by a panic.
struct Alive(Arc<watch::Sender<()>>);

/// An accepted connection on its way to its worker.
struct Arrival {
    stream: std::net::TcpStream,
    connection: Accepted,
}

/// What is known of a connection when it is handed over.
struct Accepted {
    room: Room,
    destination: SocketAddr,
    live: Live,
    memory: Charge,
}

/// The share of its direction's limit that a connection holds.
enum Room {
    Inbound(Place),
    Outbound(OwnedSemaphorePermit),
}

/// The connection limits of the listeners of one direction.
#[derive(Clone)]
enum Rooms {
    Inbound(Places),
    Outbound(Arc<Semaphore>),
}

/// Counts a connection for its worker.
struct Live(Arc<AtomicUsize>);

/// A worker that connections are handed to.
struct Target {
    /// `None`: this is the accepting thread itself.
    sender: Option<mpsc::Sender<Arrival>>,
    live: Arc<AtomicUsize>,
}

/// Starts the data workers.
pub fn start(shared: Shared, listeners: Listeners) -> io::Result<Workers> {
    let (sender, alive) = watch::channel(());
    let sender = Arc::new(sender);
    let mut targets = vec![Target {
        sender: None,
        live: Arc::default(),
    }];
    for number in 1..shared.config.workers {
        let (arrivals, receiver) = mpsc::channel(HANDED_OVER);
        targets.push(Target {
            sender: Some(arrivals),
            live: Arc::default(),
        });
        let worker = move |worker| take_over(worker, receiver);
        spawn(number, shared.clone(), Alive(sender.clone()), worker)?;
    }
    let inbound = shared.inbound.clone();
    let acceptor = move |worker| accept_all(worker, listeners, targets, inbound);
    spawn(0, shared, Alive(sender), acceptor)?;
    Ok(Workers { alive })
}

fn spawn<F>(
    number: usize,
    shared: Shared,
    alive: Alive,
    work: impl FnOnce(Rc<Worker>) -> F + Send + 'static,
) -> io::Result<()>
where
    F: Future<Output = io::Result<()>>,
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::Builder::new()
        .name(format!("worker-{number}"))
        .spawn(move || {
            let alive = alive;
            let worker = Rc::new(Worker::new(shared));
            if let Err(error) = LocalSet::new().block_on(&runtime, work(worker)) {
                tracing::error!(%error, number, "a worker has ended");
            }
            drop(alive);
        })?;
    Ok(())
}

impl Workers {
    /// Returns when a worker has ended unexpectedly.
    pub async fn lost(&self) {
        let mut alive = self.alive.clone();
        // Nothing is ever sent: this reports the end of the channel.
        let _ = alive.changed().await;
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.send_replace(());
    }
}

/// Carries the connections that the first worker hands over.
async fn take_over(worker: Rc<Worker>, mut arrivals: mpsc::Receiver<Arrival>) -> io::Result<()> {
    while let Some(Arrival { stream, connection }) = arrivals.recv().await {
        match TcpStream::from_std(stream) {
            Ok(stream) => connection.start(&worker, stream),
            Err(error) => tracing::warn!(%error, "cannot register a connection with the worker"),
        }
    }
    // The first worker has ended.
    Ok(())
}

/// Accepts connections for all workers.
async fn accept_all(
    worker: Rc<Worker>,
    listeners: Listeners,
    targets: Vec<Target>,
    inbound: Places,
) -> io::Result<()> {
    let limit = worker.config.limits.max_connections;
    let outbound = Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS)));
    let targets: Rc<[Target]> = targets.into();
    for listener in listeners.listeners {
        let rooms = match listener.direction {
            Direction::Inbound => Rooms::Inbound(inbound.clone()),
            Direction::Outbound => Rooms::Outbound(outbound.clone()),
        };
        tokio::task::spawn_local(accept(worker.clone(), listener, rooms, targets.clone()));
    }
    // A worker ends with the process.
    std::future::pending().await
}

impl Rooms {
    /// An inbound connection that waits may displace others that wait. Connections of the own app
    /// beyond the limit stay in the kernel's queue.
    async fn take(&self, peer: SocketAddr) -> Option<Room> {
        match self {
            Self::Inbound(places) => Some(Room::Inbound(places.enter(peer.ip()))),
            Self::Outbound(permits) => {
                let permit = permits.clone().acquire_owned().await;
                permit.ok().map(Room::Outbound)
            }
        }
    }

    /// A connection could not be accepted.
    fn exhausted(&self) {
        if let Self::Inbound(places) = self {
            places.exhausted();
        }
    }
}

/// Accepts connections on one listener.
async fn accept(worker: Rc<Worker>, listener: Listener, rooms: Rooms, targets: Rc<[Target]>) {
    let socket = TcpListener::from_std(listener.socket)
        .and_then(|socket| Ok((socket.local_addr()?, socket)));
    let (address, socket) = match socket {
        Ok(socket) => socket,
        Err(error) => {
            tracing::error!(%error, "a listener could not be set up");
            return;
        }
    };
    let accepting = async {
        let mut logged: Option<Instant> = None;
        loop {
            match socket.accept().await {
                Ok((stream, peer)) => {
                    // Taken only now: a listener without clients must not hold room that another
                    // listener needs.
                    let Some(room) = rooms.take(peer).await else {
                        return;
                    };
                    let known = listener.destination;
                    arrived(&worker, stream, address, known, room, &targets).await;
                    // Gives connections that have arrived a chance to run before a later one
                    // displaces them.
                    tokio::task::yield_now().await;
                }
                Err(error) => {
                    if logged.is_none_or(|at| at.elapsed() >= ACCEPT_ERROR_EVERY) {
                        logged = Some(Instant::now());
                        tracing::warn!(
                            %error,
                            "cannot accept connections: raise the limit of open files (ulimit -n)"
                        );
                    }
                    rooms.exhausted();
                    sleep(ACCEPT_BACKOFF).await;
                }
            }
        }
    };
    match listener.direction {
        Direction::Outbound => accepting.await,
        Direction::Inbound => {
            // Keep the drain open until this listener has stopped accepting.
            let _busy = worker.drain.busy();
            tokio::select! {
                () = accepting => {}
                () = late_arrivals(&worker.drain) => {}
            }
        }
    }
}

/// Returns when the shutdown has gone on for long enough that no new connections are expected.
async fn late_arrivals(drain: &Drain) {
    drain.started().await;
    sleep(LATE_ARRIVALS).await;
}

async fn arrived(
    worker: &Rc<Worker>,
    stream: TcpStream,
    listener: SocketAddr,
    known: Option<SocketAddr>,
    room: Room,
    targets: &[Target],
) {
    let direction = room.direction();
    let destination = match known {
        Some(destination) => Ok(Some(destination)),
        None => socket::original_destination(&stream, listener)
            .map(|found| found.filter(|found| !is_own(&worker.config, direction, *found))),
    };
    let destination = match destination {
        Ok(Some(destination)) => destination,
        Ok(None) => {
            tracing::debug!(
                direction = direction.as_str(),
                "a connection to the proxy itself is refused"
            );
            return socket::reset(&stream);
        }
        // Already closed.
        Err(error) => return tracing::debug!(%error, "a connection is over before it began"),
    };
    let Some(memory) = worker.memory.charge(Use::Connection, memory::CONNECTION) else {
        tracing::debug!("a connection is refused: the budget of memory is used up");
        return socket::reset(&stream);
    };
    let fewest = |target: &&Target| target.live.load(Ordering::Relaxed);
    let Some(target) = targets.iter().min_by_key(fewest) else {
        return;
    };
    let connection = Accepted {
        room,
        destination,
        live: Live::new(&target.live),
        memory,
    };
    match &target.sender {
        None => connection.start(worker, stream),
        Some(sender) => match stream.into_std() {
            Ok(stream) => {
                // Fails only when the other worker has ended, and the process with it.
                let _ = sender.send(Arrival { stream, connection }).await;
            }
            Err(error) => tracing::debug!(%error, "a connection is over before it began"),
        },
    }
}

/// Whether an inbound connection was made to the proxy itself: carrying it there would show the
/// proxy as the client.
fn is_own(config: &Config, direction: Direction, destination: SocketAddr) -> bool {
    let redirected = [config.inbound_port, config.outbound_port];
    let mut own = redirected.into_iter().flatten().map(NonZeroU16::get);
    let port = destination.port();
    direction == Direction::Inbound && (port == config.admin.port() || own.any(|own| own == port))
}

impl Room {
    fn direction(&self) -> Direction {
        match self {
            Self::Inbound(_) => Direction::Inbound,
            Self::Outbound(_) => Direction::Outbound,
        }
    }
}

impl Accepted {
    /// Carries it, in its own task.
    fn start(self, worker: &Rc<Worker>, stream: TcpStream) {
        let (worker, destination) = (worker.clone(), self.destination);
        let counted = (self.live, self.memory);
        // Two task types, so that neither has the size of the other.
        match self.room {
            Room::Inbound(place) => {
                let eviction = place.eviction();
                let task = tokio::task::spawn_local(async move {
                    let _counted = counted;
                    inbound::serve(worker, stream, destination, place).await;
                });
                eviction.ends(task.abort_handle());
            }
            Room::Outbound(permit) => {
                tokio::task::spawn_local(async move {
                    let _counted = (counted, permit);
                    outbound::serve(worker, stream, destination).await;
                });
            }
        }
    }
}

impl Live {
    fn new(live: &Arc<AtomicUsize>) -> Self {
        live.fetch_add(1, Ordering::Relaxed);
        Self(live.clone())
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
