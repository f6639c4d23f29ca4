//! The pod's own files: name resolution, its token, and a /run.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::unistd::sethostname;
use serde::{Deserialize, Serialize};

/// Size of a pod's /run: a few sockets, pid files and small caches.
const RUN_SIZE: &str = "mode=0755,size=64m";
/// The files for name resolution that are the pod's own.
const ETC: [&str; 3] = ["resolv.conf", "hosts", "nsswitch.conf"];

/// The directory of a pod's token and trust anchors.
pub const SECRETS: &str = "/run/secrets/naru";
/// The directory of the programs next to this one, and of its sidecar, inside a pod. A pod's users
/// can enter it, while the build directory may be inaccessible (usually in /root).
pub const PROGRAMS: &str = "/run/naru/bin";
pub const PROXY: &str = "/run/naru/naru-proxy";

/// The mounts that a pod's first process sets up.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Mounts {
    pub name: String,
    pub hostname: String,
    /// Filled by the kubelet: the files of [`ETC`], and `secrets`.
    pub directory: PathBuf,
    /// The directory of this program, and the sidecar's program.
    pub programs: PathBuf,
    pub proxy: PathBuf,
}

impl Mounts {
    /// Applies the mounts in the mount namespace of the caller.
    pub fn apply(&self) -> anyhow::Result<()> {
        private()?;
        proc()?;
        // Held open, because a new /run hides their directory.
        let held = |path: &Path| {
            OpenOptions::new()
                .read(true)
                .custom_flags(OFlag::O_PATH.bits())
                .open(path)
                .with_context(|| format!("opening {}", path.display()))
        };
        let etc = ETC.map(|name| (name, held(&self.directory.join(name))));
        let secrets = held(&self.directory.join("secrets"))?;
        run(RUN_SIZE)?;
        for (name, source) in etc {
            let target = Path::new("/etc").join(name);
            match place(&target) {
                Ok(target) => bind(&source?, &target)?,
                // Without this file the C library uses the same defaults.
                Err(_) if name == "nsswitch.conf" => {}
                Err(error) => {
                    return Err(error).with_context(|| {
                        format!(
                            "{}: a pod's own is put over it: create it",
                            target.display()
                        )
                    });
                }
            }
        }
        fs::create_dir_all(SECRETS)?;
        bind(&secrets, Path::new(SECRETS))?;
        fs::create_dir_all(PROGRAMS)?;
        bind(&held(&self.programs)?, Path::new(PROGRAMS))?;
        File::create(PROXY)?;
        bind(&held(&self.proxy)?, Path::new(PROXY))?;
        sethostname(&self.hostname).context("setting the host name")?;
        // As container runtimes do: unprivileged programs may listen on port 80.
        let _as_before = fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
        Ok(())
    }
}

/// Makes later mounts visible in this mount namespace only.
pub fn private() -> anyhow::Result<()> {
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).context("making mounts private")
}

/// A /proc of this PID namespace.
pub fn proc() -> anyhow::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, None::<&str>).context(
        "mounting /proc (a container that hides parts of it needs --privileged, or \
            --security-opt systempaths=unconfined)",
    )
}

/// A new /run (and /var/run, which is the same nearly everywhere).
pub fn run(options: &str) -> anyhow::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), flags, Some(options)).context("mounting /run")?;
    if !fs::symlink_metadata("/var/run")?.is_symlink() {
        mount(
            Some("/run"),
            "/var/run",
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
        .context("mounting /var/run")?;
    }
    Ok(())
}

/// The real path of a file of /etc. One in /run, where the machine's is hidden now, is created.
fn place(target: &Path) -> anyhow::Result<PathBuf> {
    let mut place = target.to_owned();
    for _ in 0..MAX_LINKS {
        let Ok(link) = fs::read_link(&place) else {
            break;
        };
        // `join` keeps an absolute link unchanged.
        place = place.parent().unwrap_or(Path::new("/")).join(link);
    }
    let mut flat = PathBuf::new();
    for part in place.components() {
        match part {
            std::path::Component::ParentDir => {
                flat.pop();
            }
            part => flat.push(part),
        }
    }
    if flat.exists() {
        return Ok(flat);
    }
    if flat.starts_with("/run") || flat.starts_with("/var/run") {
        fs::create_dir_all(flat.parent().unwrap_or(Path::new("/run")))?;
        File::create(&flat)?;
        return Ok(flat);
    }
    bail!("there is no such file")
}

/// The kernel's limit on symbolic links.
const MAX_LINKS: usize = 40;

fn bind(source: &File, target: &Path) -> anyhow::Result<()> {
    let path = CString::new(format!("/proc/self/fd/{}", source.as_raw_fd()))?;
    mount(
        Some(path.as_c_str()),
        target,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .with_context(|| format!("mounting {}", target.display()))
}
