//! The catalog from manifests to resources.

mod attachment;
mod changes;
mod endpoints;
mod filters;
mod opaque_routes;
mod outside;
mod pods;
mod status;
mod statuses;

use naru_contract::resource::Body;
use naru_contract::{MtlsMode, ResourceName, destination};

use super::*;
use crate::source::{ObjectKey, parse};

fn options() -> CatalogOptions {
    CatalogOptions {
        trust_domain: "cluster.local".into(),
        mtls: MtlsMode::Permissive,
    }
}

fn catalog(manifests: &[&str]) -> Catalog {
    let mut catalog = Catalog::new(options());
    for manifest in manifests {
        apply(&mut catalog, manifest);
    }
    catalog
}

fn apply(catalog: &mut Catalog, manifest: &str) -> Vec<Changed> {
    let objects = parse::objects(manifest, false).unwrap_or_else(|e| panic!("{e:?}\n{manifest}"));
    (objects.into_iter())
        .flat_map(|object| catalog.apply(Event::Apply(object)))
        .collect()
}

fn delete(catalog: &mut Catalog, manifest: &str) -> Vec<Changed> {
    let keys: Vec<ObjectKey> = (parse::objects(manifest, false).unwrap().iter())
        .map(Object::key)
        .collect();
    (keys.into_iter())
        .flat_map(|key| catalog.apply(Event::Delete(key)))
        .collect()
}

/// A change, as the name of the resource: with `*` for the clients of every namespace, or every
/// port of an address.
fn change(name: &str) -> Changed {
    let address = name.strip_prefix("destination/");
    if let Some(ip) = address.and_then(|address| address.strip_suffix(":*")) {
        return Changed::Address(ip.parse().unwrap());
    }
    match name.parse().unwrap() {
        ResourceName::Service {
            client_namespace,
            namespace,
            name,
            port,
        } if client_namespace == "*" => Changed::Service {
            namespace,
            name,
            port,
        },
        name => Changed::Resource(name),
    }
}

fn compile_for(catalog: &Catalog, namespace: &str, name: &str) -> Option<Compiled> {
    let viewer = Viewer {
        namespace: namespace.into(),
        pod: "client".into(),
    };
    catalog.compile(&viewer, &name.parse::<ResourceName>().unwrap())
}

fn compile(catalog: &Catalog, name: &str) -> Option<Compiled> {
    compile_for(catalog, "shop", name)
}

fn endpoints(catalog: &Catalog, name: &str) -> naru_contract::Endpoints {
    match compile(catalog, name).unwrap().body {
        Body::Endpoints(endpoints) => endpoints,
        other => panic!("{other:?}"),
    }
}

/// As `ip:port`, in order.
fn addresses(catalog: &Catalog, name: &str) -> Vec<String> {
    (endpoints(catalog, name).endpoints.iter())
        .map(|e| match e.ip.len() {
            4 => format!("{}.{}.{}.{}:{}", e.ip[0], e.ip[1], e.ip[2], e.ip[3], e.port),
            _ => format!("v6-{}:{}", e.ip[15], e.port),
        })
        .collect()
}

fn target(catalog: &Catalog, address: &str) -> Option<destination::Target> {
    match compile(catalog, &format!("destination/{address}"))
        .unwrap()
        .body
    {
        Body::Destination(destination) => destination.target,
        other => panic!("{other:?}"),
    }
}

fn service_of(compiled: Option<Compiled>) -> naru_contract::Service {
    match compiled.unwrap().body {
        Body::Service(service) => service,
        other => panic!("{other:?}"),
    }
}

fn route_of(compiled: Option<Compiled>) -> naru_contract::HttpRoute {
    match compiled.unwrap().body {
        Body::HttpRoute(route) => route,
        other => panic!("{other:?}"),
    }
}

fn service(namespace: &str, name: &str, ip: &str, ports: &str) -> String {
    format!(
        "apiVersion: v1\n\
         kind: Service\n\
         metadata: {{ name: {name}, namespace: {namespace} }}\n\
         spec: {{ clusterIP: \"{ip}\", selector: {{ app: {name} }}, ports: [{ports}] }}\n"
    )
}

fn pod(namespace: &str, name: &str, ip: &str, meshed: bool) -> String {
    format!(
        "apiVersion: v1\n\
         kind: Pod\n\
         metadata: {{ name: {name}, namespace: {namespace}, labels: {{ app: web, \
         naru.dev/injected: \"{meshed}\" }} }}\n\
         spec: {{ serviceAccountName: web, containers: [{{ name: a, ports: [{{ name: web, \
         containerPort: 8080 }}] }}] }}\n\
         status: {{ phase: Running, podIP: {ip} }}\n"
    )
}

/// `endpoints` as a flow sequence of EndpointSlice endpoints.
fn slice(name: &str, service: &str, ports: &str, endpoints: &str) -> String {
    let family = if endpoints.contains("::") {
        "IPv6"
    } else {
        "IPv4"
    };
    format!(
        "apiVersion: discovery.k8s.io/v1\n\
         kind: EndpointSlice\n\
         metadata: {{ name: {name}, namespace: shop, \
         labels: {{ kubernetes.io/service-name: {service} }} }}\n\
         addressType: {family}\n\
         ports: [{ports}]\n\
         endpoints: [{endpoints}]\n"
    )
}

fn endpoint(ip: &str, pod: &str, conditions: &str) -> String {
    format!(
        "{{ addresses: [\"{ip}\"], conditions: {{ {conditions} }}, zone: z1, targetRef: {{ kind: \
         Pod, namespace: shop, name: {pod} }} }}"
    )
}

fn route(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\n\
         kind: HTTPRoute\n\
         metadata: {{ name: {name}, namespace: {namespace} }}\n\
         spec: {{ {spec} }}\n"
    )
}

/// A route whose parent is `web` of `shop`, and its only backend.
fn route_to(namespace: &str, name: &str, backend: &str) -> String {
    route(
        namespace,
        name,
        &format!(
            "parentRefs: [{{ group: \"\", kind: Service, namespace: shop, name: web, port: 80 }}], \
             rules: [{{ backendRefs: [{{ {backend} }}] }}]"
        ),
    )
}
