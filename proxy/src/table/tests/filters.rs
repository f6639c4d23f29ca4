//! Filters that refer to other resources, or that are unknown.

use naru_contract::http_filter::Kind;

use super::*;

const SHADOW: &str = "endpoints/shop/shadow/80";

/// A route with this filter on its rule, and on its backend.
fn filtered(version: u64, on_rule: Option<Kind>, on_backend: Option<Kind>) -> Resource {
    let mut route = route(version, "/");
    let Some(Body::HttpRoute(body)) = &mut route.body else {
        unreachable!("a route");
    };
    let list = |kind: Option<Kind>| vec![contract::HttpFilter { kind }];
    let rule = &mut body.rules[0];
    rule.filters = list(on_rule);
    rule.backends[0].filters = list(on_backend);
    route
}

fn mirror(endpoints: &str) -> Option<Kind> {
    Some(Kind::Mirror(contract::Mirror {
        endpoints: endpoints.to_owned(),
        numerator: 1,
        denominator: 2,
    }))
}

fn shadow(name: &str, version: u64) -> Resource {
    let Some(Body::Endpoints(mut body)) = endpoints(1, &[("10.1.0.9", "")]).body else {
        unreachable!("endpoints");
    };
    let mut parts = name.split('/').skip(1).map(str::to_owned);
    body.namespace = parts.next().unwrap_or_default();
    body.service = parts.next().unwrap_or_default();
    resource(name, version, Body::Endpoints(body))
}

#[tokio::test]
async fn a_mirror_s_endpoints_are_kept_as_long_as_the_mirror() {
    const DARK: &str = "endpoints/other/dark/80";
    let (mut fixture, cell) = Fixture::with_service();
    let both = filtered(1, mirror(SHADOW), mirror(DARK));
    let pushed = [
        both,
        service(2, &[ROUTE]),
        shadow(SHADOW, 3),
        shadow(DARK, 4),
    ];
    assert_eq!(fixture.push(pushed), []);
    let found = logical(&cell);
    let rule = found.routes.as_ref().unwrap().rules().next().unwrap();
    for mirrors in [&rule.mirrors, &rule.backends[0].mirrors] {
        let [mirror] = mirrors.as_slice() else {
            panic!("{mirrors:?}");
        };
        let found = mirror.backend.endpoints().endpoints.clone();
        assert_eq!(found[0].address, address("10.1.0.9:8080"));
    }
    let held = fixture.held();
    assert!(held.contains(&(SHADOW.to_owned(), 3)), "{held:?}");
    assert!(held.contains(&(DARK.to_owned(), 4)), "{held:?}");

    fixture.push([route(5, "/")]);
    let held = fixture.held();
    assert!(held.iter().all(|(name, _)| name != SHADOW && name != DARK));
}

#[tokio::test]
async fn an_unknown_filter_rejects_its_route() {
    let (mut fixture, cell) = Fixture::with_service();
    let good = filtered(1, mirror(SHADOW), mirror(SHADOW));
    assert_eq!(fixture.push([good, service(2, &[ROUTE])]), []);
    let before = logical(&cell);
    let of_rule = filtered(2, None, mirror(SHADOW));
    fixture.rejects(of_rule, "rules[0].filters[0]");
    let of_backend = filtered(3, mirror(SHADOW), None);
    fixture.rejects(of_backend, "rules[0].backends[0].filters[0]");
    assert!(Arc::ptr_eq(&before, &logical(&cell)));
}
