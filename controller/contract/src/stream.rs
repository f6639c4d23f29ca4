//! The messages of the Sync stream.

use crate::Resource;

/// A message from a proxy.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct FromProxy {
    #[prost(oneof = "from_proxy::Message", tags = "1, 2, 3, 4")]
    pub message: Option<from_proxy::Message>,
}

pub mod from_proxy {
    #[derive(Clone, PartialEq, ::prost::Oneof)]
    pub enum Message {
        #[prost(message, tag = "1")]
        Hello(super::Hello),
        #[prost(message, tag = "2")]
        Subscribe(super::Subscribe),
        #[prost(message, tag = "3")]
        Unsubscribe(super::Unsubscribe),
        #[prost(message, tag = "4")]
        Answer(super::Answer),
    }
}

/// The first message on every stream, and only the first.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct Hello {
    #[prost(uint32, tag = "1")]
    pub contract_version: u32,
    /// Release of the proxy, for people and metrics.
    #[prost(string, tag = "2")]
    pub proxy_version: String,
    /// The pod's namespace. It must match the certificate's.
    #[prost(string, tag = "3")]
    pub namespace: String,
    /// The pod's name.
    #[prost(string, tag = "4")]
    pub pod: String,
    /// Destinations that the proxy is subscribed to, as `ip:port` or `[ip]:port`.
    #[prost(string, repeated, tag = "5")]
    pub destinations: Vec<String>,
    /// The resources that the proxy has in force, so that only changes are sent.
    #[prost(message, repeated, tag = "6")]
    pub held: Vec<Held>,
}

/// A resource that a proxy has in force.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct Held {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(fixed64, tag = "2")]
    pub version: u64,
}

/// Adds destinations, as `ip:port` or `[ip]:port`.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct Subscribe {
    #[prost(string, repeated, tag = "1")]
    pub destinations: Vec<String>,
}

/// Removes destinations.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct Unsubscribe {
    #[prost(string, repeated, tag = "1")]
    pub destinations: Vec<String>,
}

/// The result of a push: all of it is in force except the listed rejections.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct Answer {
    #[prost(uint64, tag = "1")]
    pub sequence: u64,
    #[prost(message, repeated, tag = "2")]
    pub rejected: Vec<Rejection>,
}

/// A resource that a proxy could not apply. The previous version stays in force.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct Rejection {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub reason: String,
}

/// A message to a proxy.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct ToProxy {
    #[prost(oneof = "to_proxy::Message", tags = "1, 2")]
    pub message: Option<to_proxy::Message>,
}

pub mod to_proxy {
    #[derive(Clone, PartialEq, ::prost::Oneof)]
    pub enum Message {
        #[prost(message, tag = "1")]
        Push(super::Push),
        #[prost(message, tag = "2")]
        Heartbeat(super::Heartbeat),
    }
}

/// Changes that are applied in one step, and acknowledged with an [`Answer`].
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct Push {
    /// 1 for the first push on a stream, then one more each time.
    #[prost(uint64, tag = "1")]
    pub sequence: u64,
    #[prost(message, repeated, tag = "2")]
    pub updates: Vec<Resource>,
    /// Names of resources that the proxy no longer needs.
    #[prost(string, repeated, tag = "3")]
    pub removed: Vec<String>,
}

/// Sent while nothing changes, so that a proxy can distinguish an idle controller from a lost one.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct Heartbeat {}
