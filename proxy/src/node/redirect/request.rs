//! The pod owner's exceptions from redirection, and the request to the node's agent for rules that
//! are missing.
//!
//! The pod listens on an abstract Unix socket, which is visible in its own network namespace only;
//! the agent checks each namespace for one. So a pod can request nothing but its own redirection.
//! One line goes each way: the request as JSON, and `ok` or an error.

use std::fmt::Display;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Cidr, parse_list};

/// The name of that socket.
pub const SOCKET_NAME: &str = "naru-redirect";

/// The exceptions of the pod's owner.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftAlone {
    pub inbound_ports: Vec<u16>,
    pub outbound_ports: Vec<u16>,
    pub outbound_cidrs: Vec<Cidr>,
    pub class_e_in_use: bool,
}

/// The same as texts: comma-separated lists, as in annotations and flags.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Request {
    pub skip_inbound_ports: String,
    pub skip_outbound_ports: String,
    pub skip_outbound_cidrs: String,
    /// `true` or `false`; empty: `false`.
    pub class_e_in_use: String,
}

impl Request {
    /// The error names the invalid text.
    pub fn parse(&self) -> Result<LeftAlone, String> {
        fn list<T: FromStr<Err: Display>>(name: &str, text: &str) -> Result<Vec<T>, String> {
            parse_list(text)
                .map(|list| list.0)
                .map_err(|error| format!("{name}: {error}"))
        }
        Ok(LeftAlone {
            inbound_ports: list("skip-inbound-ports", &self.skip_inbound_ports)?,
            outbound_ports: list("skip-outbound-ports", &self.skip_outbound_ports)?,
            outbound_cidrs: list("skip-outbound-cidrs", &self.skip_outbound_cidrs)?,
            class_e_in_use: match self.class_e_in_use.trim().to_ascii_lowercase().as_str() {
                "true" => true,
                "" | "false" => false,
                other => return Err(format!("class-e-in-use: {other:?}: expected true or false")),
            },
        })
    }
}

impl From<&LeftAlone> for Request {
    fn from(left_alone: &LeftAlone) -> Self {
        fn list<T: ToString>(items: &[T]) -> String {
            let items: Vec<_> = items.iter().map(T::to_string).collect();
            items.join(",")
        }
        Self {
            skip_inbound_ports: list(&left_alone.inbound_ports),
            skip_outbound_ports: list(&left_alone.outbound_ports),
            skip_outbound_cidrs: list(&left_alone.outbound_cidrs),
            class_e_in_use: left_alone.class_e_in_use.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_represents_the_flags() {
        let request = Request {
            skip_inbound_ports: "8081,9000".to_owned(),
            skip_outbound_ports: String::new(),
            skip_outbound_cidrs: "10.0.0.0/8,fd00::1/128".to_owned(),
            class_e_in_use: "true".to_owned(),
        };
        let left_alone = request.parse().expect("lists");
        assert_eq!(left_alone.inbound_ports, [8081, 9000]);
        assert_eq!(Request::from(&left_alone), request);
    }

    #[test]
    fn an_invalid_list_is_named() {
        let request = Request {
            skip_outbound_ports: "80,http".to_owned(),
            ..Request::default()
        };
        let error = request.parse().expect_err("no port");
        assert!(
            error.starts_with("skip-outbound-ports: \"http\""),
            "{error}"
        );
    }
}
