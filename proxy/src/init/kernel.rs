//! The table and the kernel: put in force, compared with what is in force, taken away.

use nlink::netlink::nftables::{
    BaseChain, Chain, Family, NFT_MSG_NEWTABLE, NFTA_TABLE_NAME, RawMessage,
};
use nlink::netlink::{Connection, Nftables};
use thiserror::Error;

use super::RedirectRules;
use super::rules::{TABLE, chains, rules};

/// `NLM_F_CREATE` without `NLM_F_EXCL`: create it, or take the one that is there.
const CREATE_OR_KEEP: u16 = 0x400;

/// Why the rules are not in force.
#[derive(Debug, Error)]
pub enum InitError {
    #[error(
        "no permission to change this network namespace: run it with CAP_NET_ADMIN (in Kubernetes \
         an init container with securityContext.capabilities.add: [NET_ADMIN]), or inside a user \
         namespace that owns the network namespace"
    )]
    Permission(#[source] nlink::Error),
    #[error(
        "the kernel of this machine cannot redirect by nftables: it needs nf_tables with inet NAT \
         (Linux 5.2 or later, CONFIG_NF_TABLES_INET, CONFIG_NFT_NAT, CONFIG_NFT_REDIR, \
         CONFIG_NF_CONNTRACK); where these are modules, load them on the host: \
         modprobe -a nf_tables nft_chain_nat nft_redir"
    )]
    Unsupported(#[source] nlink::Error),
    #[error("the kernel refused the redirect rules")]
    Refused(#[source] nlink::Error),
    #[error("there are no redirect rules: {TABLE} is not among the inet tables")]
    Absent,
    #[error("the redirect rules in force are others: expected `{expected}`, found `{found}`")]
    Different { expected: String, found: String },
}

impl From<nlink::Error> for InitError {
    fn from(error: nlink::Error) -> Self {
        // An unknown netlink subsystem is EINVAL, an unknown family or expression one of the rest.
        const EPROTONOSUPPORT: i32 = 93;
        const EAFNOSUPPORT: i32 = 97;
        if error.is_permission_denied() {
            Self::Permission(error)
        } else if error.is_not_supported()
            || error.is_not_found()
            || error.is_invalid_argument()
            || matches!(error.errno(), Some(EPROTONOSUPPORT | EAFNOSUPPORT))
        {
            Self::Unsupported(error)
        } else {
            Self::Refused(error)
        }
    }
}

/// Puts the rules in force, in place of those that an earlier run left. All or nothing: at no
/// moment is a part of them missing.
pub async fn install(wanted: &RedirectRules) -> Result<(), InitError> {
    let connection = Connection::<Nftables>::new()?;
    // Made if absent, so that deleting it cannot fail; then deleted with all that is in it.
    let mut transaction = connection
        .transaction()
        .raw(
            RawMessage::new(NFT_MSG_NEWTABLE, Family::Inet)
                .flags(CREATE_OR_KEEP)
                .attrs(text_attribute(NFTA_TABLE_NAME, TABLE)),
        )
        .del_table(TABLE, Family::Inet)
        .add_table(TABLE, Family::Inet);
    for (name, base) in chains() {
        let chain = Chain::new(TABLE, name)?.family(Family::Inet);
        transaction = transaction.add_chain(match base {
            Some(base) => chain.base(base),
            None => chain,
        });
    }
    for (_, rule) in rules(wanted)? {
        transaction = transaction.add_rule(rule);
    }
    transaction.commit(&connection).await?;
    Ok(())
}

/// Takes the rules away; none there is fine. Connections that were redirected live on.
pub async fn remove() -> Result<(), InitError> {
    let connection = Connection::<Nftables>::new()?;
    connection.del_table_if_exists(TABLE, Family::Inet).await?;
    Ok(())
}

/// Whether exactly these rules are in force.
pub async fn check(wanted: &RedirectRules) -> Result<(), InitError> {
    let connection = Connection::<Nftables>::new()?;
    let tables = connection.list_tables_in(Family::Inet).await?;
    if !tables.iter().any(|table| table.name == TABLE) {
        return Err(InitError::Absent);
    }
    let mut found = Vec::new();
    for chain in connection.list_chains_in(TABLE, Family::Inet).await? {
        let base = chain.kind().and_then(|kind| kind.base().cloned());
        found.push(chain_line(&chain.name, base.as_ref()));
    }
    for rule in connection.list_rules(TABLE, Family::Inet).await? {
        found.push(rule_line(&rule.chain, rule.nft_syntax()));
    }
    let mut expected: Vec<_> = chains()
        .iter()
        .map(|(name, base)| chain_line(name, base.as_ref()))
        .collect();
    for (chain, rule) in rules(wanted)? {
        expected.push(rule_line(chain, rule.nft_syntax()));
    }
    first_difference(expected, found).map_or(Ok(()), Err)
}

fn chain_line(name: &str, base: Option<&BaseChain>) -> String {
    match base {
        None => format!("chain {name}"),
        Some(base) => format!("chain {name}: {base:?}"),
    }
}

fn rule_line(chain: &str, rule: Option<String>) -> String {
    format!("{chain}: {}", rule.as_deref().unwrap_or("a rule of others"))
}

/// The kernel lists chains in the order of their making and the rules of each in theirs.
fn first_difference(expected: Vec<String>, found: Vec<String>) -> Option<InitError> {
    let longest = expected.len().max(found.len());
    let padded = |lines: Vec<String>| {
        let missing = longest - lines.len();
        lines
            .into_iter()
            .chain(std::iter::repeat_n("nothing".to_owned(), missing))
    };
    padded(expected)
        .zip(padded(found))
        .find(|(expected, found)| expected != found)
        .map(|(expected, found)| InitError::Different { expected, found })
}

/// A netlink attribute that holds a text: length, type, the text with its final zero, padding.
fn text_attribute(kind: u16, text: &str) -> Vec<u8> {
    const HEADER: usize = 4;
    let length = HEADER + text.len() + 1;
    let mut bytes = Vec::with_capacity(length.next_multiple_of(4));
    bytes.extend((length as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(text.as_bytes());
    bytes.push(0);
    bytes.resize(length.next_multiple_of(4), 0);
    bytes
}
