//! Rules for pods that started without the plugin. In: the directory with the network namespaces of
//! the node's pods. Out: rules in the namespaces of pods that request them
//! (`crate::node::redirect::request`), counted.
//!
//! A pod counts as hostile: its request is bounded in length and time, each pod occupies at most
//! one thread for that time, and it gets rules only where there are none. The host's own network
//! namespace is never used.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};
use tracing::{debug, info, warn};

use super::namespace::{Namespace, Work, redirect};
use super::report::Report;
use crate::node::redirect::{RedirectRules, Request, SOCKET_NAME};

/// How long a pod may take to send its request, which it has prepared.
const REQUEST: Duration = Duration::from_secs(2);
/// Bound on a request, in bytes: lists of ports and networks.
const MAX_REQUEST: usize = 256 * 1024;
/// Pods served at once. Further pods are served in a later pass.
const MAX_AT_ONCE: usize = 64;

/// Searches for pods with requests, one pass after the other.
pub struct Repairs {
    folder: PathBuf,
    /// The agent's own network namespace: the host's.
    own: Namespace,
    /// Namespaces whose pod is being served.
    busy: Arc<Mutex<HashSet<(u64, u64)>>>,
    report: Report,
}

impl Repairs {
    pub fn new(folder: PathBuf, report: Report) -> io::Result<Self> {
        Ok(Self {
            folder,
            own: Namespace::own()?,
            busy: Arc::default(),
            report,
        })
    }

    /// Checks every namespace once. Blocks, so call it on a thread of its own.
    pub fn pass(&self) -> io::Result<()> {
        let looked = self.look();
        // A namespace ends with its last thread.
        self.own.enter()?;
        looked
    }

    fn look(&self) -> io::Result<()> {
        let entries = match fs::read_dir(&self.folder) {
            // No pod has started yet.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for path in entries.flatten().map(|entry| entry.path()) {
            // The namespace may end meanwhile, or the file may not be one.
            if let Err(error) = self.look_into(&path) {
                debug!(path = %path.display(), %error, "looking into a network namespace");
            }
        }
        Ok(())
    }

    fn look_into(&self, path: &Path) -> io::Result<()> {
        let namespace = Namespace::open(path)?;
        if namespace.id == self.own.id || self.busy().contains(&namespace.id) {
            return Ok(());
        }
        namespace.enter()?;
        let Some(stream) = call()? else {
            return Ok(());
        };
        {
            let mut busy = self.busy();
            if busy.len() >= MAX_AT_ONCE {
                return Ok(());
            }
            busy.insert(namespace.id);
        }
        let (busy, report, path) = (self.busy.clone(), self.report.clone(), path.to_owned());
        std::thread::spawn(move || {
            serve(stream, &namespace, &path, &report);
            busy.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&namespace.id);
        });
        Ok(())
    }

    fn busy(&self) -> std::sync::MutexGuard<'_, HashSet<(u64, u64)>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Connects to the requesting pod in the thread's network namespace. Never blocks.
fn call() -> io::Result<Option<UnixStream>> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    match socket.connect(&SockAddr::unix(format!("\0{SOCKET_NAME}"))?) {
        Ok(()) => {
            socket.set_nonblocking(false)?;
            Ok(Some(socket.into()))
        }
        // There is no listener, or its backlog is full.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::ConnectionRefused | io::ErrorKind::WouldBlock
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn serve(mut stream: UnixStream, namespace: &Namespace, path: &Path, report: &Report) {
    let done = read_request(&mut stream)
        .map_err(|error| format!("reading what the pod asks for: {error}"))
        .and_then(|request| request.parse())
        .and_then(|left_alone| {
            redirect(namespace, Work::Add, &RedirectRules::of_pod(left_alone))
                .map_err(|error| error.to_string())
        });
    let answer = match &done {
        Ok(()) => {
            info!(namespace = %path.display(), "set the redirect rules of a pod that had none");
            "ok"
        }
        Err(error) => {
            warn!(
                namespace = %path.display(),
                error,
                "cannot set the redirect rules that a pod requested"
            );
            error
        }
    };
    report.pod(done.is_ok());
    let told = stream
        .set_write_timeout(Some(REQUEST))
        .and_then(|()| stream.write_all(format!("{}\n", answer.replace('\n', " ")).as_bytes()));
    if let Err(error) = told {
        debug!(namespace = %path.display(), %error, "answering a pod");
    }
}

/// Reads one line, bounded in time and length.
fn read_request(stream: &mut UnixStream) -> io::Result<Request> {
    let deadline = Instant::now() + REQUEST;
    let mut line = Vec::new();
    while !line.contains(&b'\n') {
        if line.len() > MAX_REQUEST {
            return Err(io::Error::other("it is too long"));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        let mut part = [0; 4096];
        match stream.read(&mut part)? {
            0 => break,
            length => line.extend_from_slice(&part[..length]),
        }
    }
    Ok(serde_json::from_slice(&line)?)
}
