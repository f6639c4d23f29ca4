//! Declared settings: protocols of ports, and whether clients without an identity are accepted.

use naru_contract::{MtlsMode, Protocol};

use super::Catalog;
use crate::source::{Annotations, Pod, Service, ServicePort, TargetPort};

impl Catalog {
    /// The protocol of a Service's port; `None`: not declared.
    pub(super) fn declared_of_service(
        &self,
        service: &Service,
        port: &ServicePort,
    ) -> Option<Protocol> {
        if port.declared.is_some() {
            return port.declared;
        }
        let target = match port.target_port {
            TargetPort::Number(number) => number,
            TargetPort::Name(_) => port.port,
        };
        let opaque = self.opaque_ports(&service.name.namespace, &service.annotations);
        (opaque.contains(&port.port) || opaque.contains(&target)).then_some(Protocol::Tcp)
    }

    /// The protocol of a pod's port from the annotations of the pod, or of its namespace.
    pub(super) fn declared_of_pod(&self, pod: &Pod, port: u16) -> Option<Protocol> {
        (self.opaque_ports(&pod.name.namespace, &pod.annotations))
            .contains(&port)
            .then_some(Protocol::Tcp)
    }

    /// The list of the more specific object, if it has one, else the namespace's.
    pub(super) fn opaque_ports<'a>(
        &'a self,
        namespace: &str,
        annotations: &'a Annotations,
    ) -> &'a [u16] {
        let of_namespace = || {
            let namespace = self.index.namespaces.get(namespace)?;
            namespace.annotations.opaque_ports.as_ref()
        };
        (annotations.opaque_ports.as_ref())
            .or_else(of_namespace)
            .map_or(&[], Vec::as_slice)
    }

    pub(super) fn mtls(&self, pod: &Pod) -> MtlsMode {
        let of_namespace = || {
            let namespace = self.index.namespaces.get(&pod.name.namespace)?;
            namespace.annotations.mtls
        };
        (pod.annotations.mtls)
            .or_else(of_namespace)
            .unwrap_or(self.options.mtls)
    }
}
