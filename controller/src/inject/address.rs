//! The controller's address for sidecars. A name that needs a search list
//! (`naru-controller.naru-system.svc`) resolves in pods with the default list, but not with
//! `dnsPolicy: None`: the cluster's domain is appended to it.

/// `resolv_conf`: of the controller's own pod, whose search list contains the domain.
pub fn qualified(address: &str, resolv_conf: &str) -> String {
    let completed = address.rsplit_once(':').and_then(|(host, port)| {
        let domain = host.ends_with(".svc").then(|| domain(resolv_conf))??;
        Some(format!("{host}.{domain}:{port}"))
    });
    completed.unwrap_or_else(|| address.to_owned())
}

/// The cluster's domain: a pod's search list contains `svc.DOMAIN`.
fn domain(resolv_conf: &str) -> Option<&str> {
    let mut lines = resolv_conf.lines().rev();
    // The last `search` line wins.
    let searched = lines.find_map(|line| line.trim().strip_prefix("search"))?;
    let mut names = searched.split_whitespace();
    let domain = names.find_map(|name| name.strip_prefix("svc."))?;
    let domain = domain.trim_end_matches('.');
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    (!domain.is_empty() && domain.chars().all(is_name)).then_some(domain)
}

#[cfg(test)]
mod tests {
    use super::*;

    const IN_A_POD: &str = "nameserver 10.96.0.10\n\
        search naru-system.svc.corp.example svc.corp.example corp.example lan\n\
        options ndots:5\n";

    #[test]
    fn a_services_name_gets_the_clusters_domain_and_other_names_stay() {
        for (address, expected) in [
            (
                "naru-controller.naru-system.svc:15010",
                "naru-controller.naru-system.svc.corp.example:15010",
            ),
            (
                "naru-controller.naru-system.svc.other:15010",
                "naru-controller.naru-system.svc.other:15010",
            ),
            ("10.0.0.1:15010", "10.0.0.1:15010"),
            ("[fd00::1]:15010", "[fd00::1]:15010"),
            ("localhost:15010", "localhost:15010"),
        ] {
            assert_eq!(qualified(address, IN_A_POD), expected);
        }
        let name = "naru-controller.naru-system.svc:15010";
        for outside in ["", "search lan\n", "search svc.\n", "search svc.a/b\n"] {
            assert_eq!(qualified(name, outside), name);
        }
    }
}
