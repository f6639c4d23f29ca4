//! The watched kinds, and their API versions.

use kube::api::{ApiResource, GroupVersionKind};

use crate::source::Kind;

/// The API of a kind.
pub struct Served {
    pub kind: Kind,
    group: &'static str,
    /// In order of preference.
    pub versions: &'static [&'static str],
    plural: &'static str,
    /// Defined by a CRD that may be missing.
    pub optional: bool,
}

/// Pods come before the slices that refer to them, as far as the order is ours to choose.
pub const SERVED: [Served; 10] = [
    built_in(Kind::Namespace, "", "namespaces"),
    built_in(Kind::Pod, "", "pods"),
    built_in(Kind::Service, "", "services"),
    built_in(Kind::EndpointSlice, "discovery.k8s.io", "endpointslices"),
    Served {
        kind: Kind::HttpRoute,
        group: "gateway.networking.k8s.io",
        versions: &["v1"],
        plural: "httproutes",
        optional: true,
    },
    Served {
        kind: Kind::GrpcRoute,
        group: "gateway.networking.k8s.io",
        versions: &["v1"],
        plural: "grpcroutes",
        optional: true,
    },
    Served {
        kind: Kind::TlsRoute,
        group: "gateway.networking.k8s.io",
        versions: &["v1"],
        plural: "tlsroutes",
        optional: true,
    },
    Served {
        kind: Kind::TcpRoute,
        group: "gateway.networking.k8s.io",
        versions: &["v1"],
        plural: "tcproutes",
        optional: true,
    },
    Served {
        kind: Kind::ReferenceGrant,
        group: "gateway.networking.k8s.io",
        versions: &["v1", "v1beta1"],
        plural: "referencegrants",
        optional: true,
    },
    Served {
        kind: Kind::BackendTrafficPolicy,
        group: "gateway.networking.x-k8s.io",
        versions: &["v1alpha1"],
        plural: "xbackendtrafficpolicies",
        optional: true,
    },
];

const fn built_in(kind: Kind, group: &'static str, plural: &'static str) -> Served {
    Served {
        kind,
        group,
        versions: &["v1"],
        plural,
        optional: false,
    }
}

impl Served {
    /// The resource to request, in one of the kind's versions.
    pub fn resource(&self, version: usize) -> ApiResource {
        let kind = GroupVersionKind::gvk(self.group, self.versions[version], self.kind.as_str());
        ApiResource::from_gvk_with_plural(&kind, self.plural)
    }
}
