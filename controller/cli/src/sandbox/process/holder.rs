//! The process that holds a pod's namespaces: PID 1 of the pod. It makes the pod's view of the
//! machine, says so on standard output, and from then on only buries orphans.

use std::io::Write;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::mounts::Mounts;

/// Sets a pod's view of the machine up, says so, and then only buries orphans.
pub fn run(mounts: &Mounts) -> anyhow::Result<()> {
    mounts.apply()?;
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    signals.thread_block()?;
    std::io::stdout().write_all(b"ready\n")?;
    loop {
        // An error says that there is no child: the next one's end is a signal.
        if waitpid(Pid::from_raw(-1), None).is_err() {
            signals.wait()?;
        }
    }
}
