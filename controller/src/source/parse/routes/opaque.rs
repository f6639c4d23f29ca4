//! TLSRoutes and TCPRoutes as written, validated like their CRDs. They route connections, and have
//! only backends; a TLSRoute also has SNI names.

use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::checks::{MAX_HOSTNAME, at_most, is_hostname};
use super::http;
use crate::source::objects::{Route, RouteKind};
use crate::source::parse::gateway;
use crate::source::parse::problem::Invalid;

const MAX_HOSTNAMES: usize = 1_024;

pub fn tls_route(object: gateway::TlsRoute) -> Result<Route, Invalid> {
    let hostnames = object.spec.hostnames.clone();
    if hostnames.is_empty() {
        let message = "name at least one that clients ask for, as a.example or *.example";
        return Err(Invalid::new("spec.hostnames", message));
    }
    at_most("spec.hostnames", hostnames.len(), MAX_HOSTNAMES)?;
    for (i, hostname) in hostnames.iter().enumerate() {
        check_hostname(&format!("spec.hostnames[{i}]"), hostname)?;
    }
    Ok(Route {
        hostnames,
        ..reduce(RouteKind::Tls, &object.metadata, object.spec)?
    })
}

pub fn tcp_route(object: gateway::TcpRoute) -> Result<Route, Invalid> {
    reduce(RouteKind::Tcp, &object.metadata, object.spec)
}

fn reduce(
    kind: RouteKind,
    metadata: &ObjectMeta,
    spec: gateway::OpaqueRouteSpec,
) -> Result<Route, Invalid> {
    let [given] = <[_; 1]>::try_from(spec.rules).map_err(|rules| {
        let message = format!("there has to be one, not {}", rules.len());
        Invalid::new("spec.rules", message)
    })?;
    if given.backend_refs.is_empty() {
        let message = "there has to be at least one";
        return Err(Invalid::new("spec.rules[0].backendRefs", message));
    }
    let rule = gateway::HttpRule {
        name: given.name,
        backend_refs: (given.backend_refs.into_iter())
            // The CRD has no filters here, and the API server drops them.
            .map(|backend| gateway::BackendRef {
                filters: Vec::new(),
                ..backend
            })
            .collect(),
        ..gateway::HttpRule::default()
    };
    http::reduce(kind, metadata, spec.parent_refs, vec![Ok(rule)])
}

fn check_hostname(field: &str, hostname: &str) -> Result<(), Invalid> {
    let problem = if hostname.is_empty() || hostname.len() > MAX_HOSTNAME {
        format!("it has to have 1 to {MAX_HOSTNAME} characters")
    } else if hostname.parse::<IpAddr>().is_ok() {
        format!("{hostname:?} is an address: TLS clients ask for names")
    } else if !is_hostname(hostname.strip_prefix("*.").unwrap_or(hostname)) {
        format!("{hostname:?} is not a name in lower case, as a.example, nor one after \"*.\"")
    } else {
        return Ok(());
    };
    Err(Invalid::new(field, problem))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::objects::{Name, Object};
    use crate::source::parse;

    fn parsed(kind: &str, spec: &str) -> Result<Route, String> {
        let text = format!(
            "apiVersion: gateway.networking.k8s.io/v1\n\
             kind: {kind}\n\
             metadata: {{ name: web, namespace: shop }}\n\
             spec: {{ parentRefs: [{{ group: \"\", kind: Service, name: web }}], {spec} }}\n"
        );
        match parse::objects(&text, false).map(|mut objects| objects.pop()) {
            Ok(Some(Object::Route(route))) => Ok(route),
            Ok(other) => panic!("{other:?}"),
            Err(problems) => Err(problems[0].to_string()),
        }
    }

    const RULES: &str = "rules: [{ name: all, backendRefs: [{ name: v1, port: 80 }, { name: v2, \
        port: 80, weight: 3 }] }]";

    #[test]
    fn a_route_has_backends_and_a_tls_route_also_has_names() {
        let names = format!("hostnames: [a.example, \"*.b.example\", localhost], {RULES}");
        let route = parsed("TLSRoute", &names).unwrap();
        assert_eq!((route.kind, &route.refused), (RouteKind::Tls, &None));
        assert_eq!(route.hostnames, ["a.example", "*.b.example", "localhost"]);
        let route = parsed("TCPRoute", RULES).unwrap();
        assert_eq!((route.kind, route.parents.len()), (RouteKind::Tcp, 1));
        assert!(route.hostnames.is_empty());
        let backends = &route.rules[0].backends;
        assert_eq!(backends[0].weight, 1);
        assert_eq!(backends[1].weight, 3);
        assert_eq!(route.name, Name::new("shop", "web"));
    }

    #[test]
    fn fields_that_the_crds_do_not_allow_are_named() {
        let tls =
            |hostnames: &str| parsed("TLSRoute", &format!("hostnames: [{hostnames}], {RULES}"));
        for (problem, field) in [
            (tls(""), "spec.hostnames:"),
            (tls("a.example, 10.0.0.1"), "spec.hostnames[1]"),
            (tls("\"fd00::1\""), "spec.hostnames[0]"),
            (tls("A.example"), "spec.hostnames[0]"),
            (tls("\"*\""), "spec.hostnames[0]"),
            (tls("\"a.*.example\""), "spec.hostnames[0]"),
            (tls("a.example."), "spec.hostnames[0]"),
            (parsed("TLSRoute", RULES), "spec.hostnames:"),
            (parsed("TCPRoute", "rules: []"), "spec.rules:"),
            (
                parsed("TCPRoute", "rules: [{}]"),
                "spec.rules[0].backendRefs",
            ),
            (
                parsed("TCPRoute", "rules: [{ backendRefs: [{ name: a }] }]"),
                "spec.rules[0].backendRefs[0].port",
            ),
            (
                parsed(
                    "TCPRoute",
                    "rules: [{ backendRefs: [{ name: a, port: 1, weight: -1 }] }]",
                ),
                "spec.rules[0].backendRefs[0].weight",
            ),
            (
                parsed(
                    "TCPRoute",
                    "rules: [{ backendRefs: [{ name: a, port: 1 }] }, { backendRefs: [{ name: a, \
                     port: 1 }] }]",
                ),
                "spec.rules:",
            ),
        ] {
            let problem = problem.unwrap_err();
            assert!(problem.contains(field), "{field} in {problem}");
        }
    }
}
