//! The one writer of the tables, and the handle through which workers read them.

use std::net::SocketAddr;
use std::sync::Arc;

use super::{DestinationCell, Inbound};

/// Cheap to clone. Reading takes no lock.
#[derive(Clone, Debug)]
pub struct Tables {}

impl Tables {
    /// What `address` stands for. The first call for an address subscribes to it and waits for the controller's
    /// word, at most [`crate::config::Limits::discovery_timeout`]; after that the cell holds
    /// [`super::Destination::Unknown`] until the word comes.
    pub async fn destination(&self, address: SocketAddr) -> Arc<DestinationCell> {
        let _ = address;
        todo!()
    }

    /// How the own pod is to be reached, as of now.
    pub fn inbound(&self) -> Arc<Inbound> {
        todo!()
    }

    /// The app behind an inbound port, as a destination: one cell for each address, at most
    /// MAX_INBOUND_PORTS of them.
    pub fn app(&self, address: SocketAddr) -> Arc<DestinationCell> {
        let _ = address;
        todo!()
    }
}
