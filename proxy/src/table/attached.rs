//! The resources behind a destination, for `/why`: those it was built from, and those of them that
//! were rejected.

use std::net::SocketAddr;
use std::sync::Arc;

use naru_contract::ResourceName;

use super::Destination;
use super::decode::{Content, Target};
use super::store::Store;
use super::tables::canonical;
use crate::route::Logical;

/// The resources behind a destination.
#[derive(Debug)]
pub struct Attached {
    /// The proxy's own namespace, whose routes apply.
    pub client_namespace: Arc<str>,
    pub destination: Arc<Destination>,
    /// The Service's resource. `None`: the address is a pod's own, or outside the mesh.
    pub service: Option<ResourceName>,
    /// Its routes of every kind, in order of precedence between equal matches.
    pub routes: Vec<ResourceName>,
    /// Those of these resources that were rejected, with the reason: the version before is in
    /// force, if there was one.
    pub rejected: Vec<(ResourceName, String)>,
}

impl Store {
    /// The resources behind `address` now. Call [`super::Tables::destination`] first, so that it is
    /// resolved.
    pub fn attached(&self, address: SocketAddr) -> Attached {
        let address = canonical(address);
        let destination = match self.cells.get(&address) {
            Some(entry) => entry.cell.load().clone(),
            None => Arc::new(Destination::Unknown),
        };
        let name = ResourceName::Destination(address);
        let service = match self.content(&name) {
            Some(Content::Destination(Target::Service(service))) => Some(service.clone()),
            _ => None,
        };
        self.attached_to(destination, name, service)
    }

    /// The resources behind a Service port that the app has called before; without a namespace, of
    /// a Service in the pod's own. `None`: no such call is known.
    pub fn attached_by_name(
        &self,
        namespace: Option<&str>,
        name: &str,
        port: u16,
    ) -> Option<Attached> {
        let service = ResourceName::Service {
            client_namespace: self.shared.namespace().to_string(),
            namespace: namespace.unwrap_or(self.shared.namespace()).to_owned(),
            name: name.to_owned(),
            port,
        };
        let logical: Arc<Logical> = self.logicals.get(&service)?.clone();
        let destination = Arc::new(Destination::Logical(logical));
        Some(self.attached_to(destination, service.clone(), Some(service)))
    }

    fn attached_to(
        &self,
        destination: Arc<Destination>,
        name: ResourceName,
        service: Option<ResourceName>,
    ) -> Attached {
        let routes = match service.as_ref().and_then(|service| self.content(service)) {
            Some(Content::Service(content)) => content.routes().cloned().collect(),
            _ => Vec::new(),
        };
        let made_of = std::iter::once(&name).chain(&service).chain(&routes);
        let rejected = made_of.filter_map(|name| {
            let reason = self.rejected.get(&name.to_string())?;
            Some((name.clone(), reason.clone()))
        });
        let mut rejected: Vec<_> = rejected.collect();
        rejected.dedup();
        Attached {
            client_namespace: self.shared.namespace().clone(),
            destination,
            service,
            rejected,
            routes,
        }
    }
}
