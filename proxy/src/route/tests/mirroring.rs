use super::*;

/// How many of 10,000 requests for the first backend go to each mirror.
fn copies(rule: contract::HttpRule) -> Vec<(String, u32)> {
    let routes = decode(&[route("r", vec![rule])]).expect("a route");
    let rule = routes.rules().next().expect("a rule");
    let mut counts: Vec<(String, u32)> = Vec::new();
    let mut random = random();
    for _ in 0..10_000 {
        for mirror in rule.mirrors(0, &mut random) {
            let name = mirror.backend.service.to_string();
            match counts.iter_mut().find(|(other, _)| *other == name) {
                Some((_, count)) => *count += 1,
                None => counts.push((name, 1)),
            }
        }
    }
    counts.sort();
    counts
}

#[test]
fn every_mirror_gets_its_own_share() {
    let mut all = rule("web", vec![]);
    all.filters = vec![
        mirror("endpoints/shop/all/80", 1, 1),
        mirror("endpoints/shop/fifth/80", 20, 100),
        mirror("endpoints/shop/none/80", 0, 100),
    ];
    all.backends[0].filters = vec![mirror("endpoints/shop/half/80", 1, 2)];
    let counts = copies(all);
    let [(all, every), (fifth, few), (half, some)] = &counts[..] else {
        panic!("{counts:?}");
    };
    assert_eq!((&**all, &**fifth, &**half), ("all", "fifth", "half"));
    assert_eq!(*every, 10_000);
    assert!(
        few.abs_diff(2_000) < 200 && some.abs_diff(5_000) < 250,
        "{counts:?}"
    );
}

#[test]
fn a_backend_s_mirrors_copy_only_its_own_requests() {
    let mut all = rule("web", vec![]);
    let mut other = all.backends[0].clone();
    other.filters = vec![mirror("endpoints/shop/shadow/80", 1, 1)];
    all.backends.push(other);
    let routes = decode(&[route("r", vec![all])]).expect("a route");
    let rule = routes.rules().next().expect("a rule");
    assert_eq!((rule.is_mirrored(0), rule.is_mirrored(1)), (false, true));
    assert_eq!(rule.mirrors(0, &mut random()).count(), 0);
    assert_eq!(rule.mirrors(1, &mut random()).count(), 1);
}
