//! The process that holds a pod's namespaces: PID 1 of the pod. It mounts the pod's view of the
//! machine, reports that on standard output, and from then on only reaps orphans.

use std::io::Write;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::mounts::Mounts;

/// Sets up a pod's view of the machine, reports readiness, and then only reaps orphans.
pub fn run(mounts: &Mounts) -> anyhow::Result<()> {
    mounts.apply()?;
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    signals.thread_block()?;
    std::io::stdout().write_all(b"ready\n")?;
    loop {
        // An error means that there is no child: wait for SIGCHLD.
        if waitpid(Pid::from_raw(-1), None).is_err() {
            signals.wait()?;
        }
    }
}
