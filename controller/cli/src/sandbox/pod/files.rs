//! A pod's files on the node: name resolution, token and trust anchors, which are mounted into the
//! pod, and its logs.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::path::{Path, PathBuf};

use super::kubelet::Kubelet;
use crate::sandbox::files;
use crate::sandbox::network::NODE_V4;
use crate::sandbox::network::dns::ZONE;
use crate::sandbox::objects::{PROXY_UID, Pod};

/// The directory of a pod's files.
pub fn directory(pod: &Pod) -> PathBuf {
    Path::new(files::PODS).join(&pod.uid)
}

/// The log of one of its containers.
pub fn log(pod: &Pod, container: &str) -> PathBuf {
    files::log(&format!("{}_{}_{container}", pod.namespace, pod.name))
}

/// Writes the files that are mounted into a pod.
pub fn write(directory: &Path, pod: &Pod) -> io::Result<()> {
    fs::create_dir_all(directory.join("secrets"))?;
    let namespace = &pod.namespace;
    let resolv = format!(
        "nameserver {NODE_V4}\nsearch {namespace}.svc.{ZONE} svc.{ZONE} {ZONE}\noptions ndots:5\n"
    );
    let mut hosts = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n".to_owned();
    let mut names = pod.name.clone();
    if let Some(subdomain) = &pod.template.subdomain {
        names = format!("{0}.{subdomain}.{namespace}.svc.{ZONE} {0}", pod.name);
    }
    hosts.push_str(&format!("{} {names}\n", pod.addresses.v4));
    if let Some(v6) = pod.addresses.v6 {
        hosts.push_str(&format!("{v6} {names}\n"));
    }
    fs::write(directory.join("resolv.conf"), resolv)?;
    fs::write(directory.join("hosts"), hosts)?;
    // The machine's own file may list services that cannot resolve the pod's names.
    let switch = fs::read_to_string("/etc/nsswitch.conf").unwrap_or_default();
    let mut own = String::new();
    for line in switch
        .lines()
        .filter(|line| !line.trim_start().starts_with("hosts:"))
    {
        own.push_str(line);
        own.push('\n');
    }
    own.push_str("hosts: files dns\n");
    fs::write(directory.join("nsswitch.conf"), own)
}

/// Writes the token and the trust anchors, each atomically.
pub fn write_secrets(kubelet: &Kubelet, pod: &Pod) -> anyhow::Result<()> {
    if !pod.meshed {
        return Ok(());
    }
    let secrets = directory(pod).join("secrets");
    let token = kubelet.tokens.issue(pod)?;
    let anchors = kubelet.anchors.borrow().clone();
    for (name, content, mode) in [
        ("token", token.as_bytes(), 0o400),
        ("trust-anchors.pem", anchors.as_slice(), 0o444),
    ] {
        let fresh = secrets.join(format!(".{name}"));
        let _left_by_a_failure = fs::remove_file(&fresh);
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&fresh)?;
        file.write_all(content)?;
        if kubelet.plan.root {
            chown(&fresh, Some(PROXY_UID), Some(PROXY_UID))?;
        }
        fs::rename(&fresh, secrets.join(name))?;
    }
    Ok(())
}
