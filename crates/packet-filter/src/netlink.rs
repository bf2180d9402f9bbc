//! One nf_tables transaction over netlink: all of it holds afterwards, or none of it.

use std::io;

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, sendto, socket_with, sockopt,
};

use crate::{expression::Expression, rules::Chain};

const SUBSYSTEM_NFTABLES: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = SUBSYSTEM_NFTABLES << 8;
const DELETE_TABLE: u16 = NEW_TABLE | 2;
const NEW_CHAIN: u16 = NEW_TABLE | 3;
const NEW_RULE: u16 = NEW_TABLE | 6;
const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
const FAMILY_ANY: u8 = 0;
const FAMILY_INET: u8 = 1;
const ERROR: u16 = 2;
const NESTED: u16 = 0x8000;
/// Netlink header and error code.
const ERROR_BYTES: usize = 20;
const ANSWER_WITHIN: std::time::Duration = std::time::Duration::from_secs(5);

/// Why the packet filter could not be changed. Nothing was changed then.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// No netlink socket, or it broke.
    #[error("cannot talk to the kernel's packet filter: {0}")]
    Socket(#[source] io::Error),
    /// Root in the pod's network namespace is needed.
    #[error("the packet filter may only be changed with CAP_NET_ADMIN: run privileged or add the capability")]
    NotPermitted,
    /// The kernel refused a step.
    #[error("the kernel refused to {step}: {error} (it needs nf_tables, conntrack, fib and tproxy)")]
    Refused {
        /// What was tried.
        step: String,
        /// The kernel's reason.
        #[source]
        error: io::Error,
    },
}

/// Attributes of a netlink message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes(Vec<u8>);

impl Attributes {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        // Ours are some hundred bytes; a longer one would be a bug that the kernel refuses.
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(crate) fn u32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(crate) fn text(self, kind: u16, value: &str) -> Self {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat())
    }

    pub(crate) fn nested(self, kind: u16, value: &Self) -> Self {
        self.bytes(NESTED | kind, &value.0)
    }
}

/// Steps that are taken together.
pub(crate) struct Transaction {
    bytes: Vec<u8>,
    /// What each message is for; its place is its sequence number.
    steps: Vec<String>,
}

impl Transaction {
    pub(crate) fn new() -> Self {
        let mut transaction = Self { bytes: Vec::new(), steps: Vec::new() };
        transaction.message(BATCH_BEGIN, 0, FAMILY_ANY, &Attributes::new(), "begin");
        transaction
    }

    /// Puts a table in place of one of that name.
    pub(crate) fn replace_table(mut self, table: &str, chains: &[Chain]) -> Self {
        self = self.remove_table(table);
        self.table(table);
        for chain in chains {
            self.chain(table, chain);
            for rule in &chain.rules {
                self.rule(table, chain.name, rule);
            }
        }
        self
    }

    /// Removes a table, which need not be there.
    pub(crate) fn remove_table(mut self, table: &str) -> Self {
        self.table(table); // or removing it would be an error
        let name = Attributes::new().text(1, table);
        self.message(DELETE_TABLE, ACKNOWLEDGE, FAMILY_INET, &name, &format!("remove table {table}"));
        self
    }

    fn table(&mut self, table: &str) {
        let name = Attributes::new().text(1, table);
        self.message(NEW_TABLE, CREATE | ACKNOWLEDGE, FAMILY_INET, &name, &format!("add table {table}"));
    }

    fn chain(&mut self, table: &str, chain: &Chain) {
        let hook = Attributes::new().u32(1, chain.hook).bytes(2, &chain.priority.to_be_bytes());
        let attributes = Attributes::new()
            .text(1, table)
            .text(3, chain.name)
            .nested(4, &hook)
            .u32(5, u32::from(chain.accepts))
            .text(7, "filter");
        let step = format!("add chain {} to {table}", chain.name);
        self.message(NEW_CHAIN, CREATE | ACKNOWLEDGE, FAMILY_INET, &attributes, &step);
    }

    fn rule(&mut self, table: &str, chain: &str, rule: &[Expression]) {
        let list = rule.iter().fold(Attributes::new(), |list, expression| {
            let element = Attributes::new().text(1, expression.name).nested(2, &expression.data);
            list.nested(1, &element)
        });
        let attributes = Attributes::new().text(1, table).text(2, chain).nested(4, &list);
        let names: Vec<&str> = rule.iter().map(|expression| expression.name).collect();
        let step = format!("add a rule of {} to chain {chain} of {table}", names.join(", "));
        self.message(NEW_RULE, CREATE | APPEND | ACKNOWLEDGE, FAMILY_INET, &attributes, &step);
    }

    fn message(&mut self, kind: u16, flags: u16, family: u8, attributes: &Attributes, step: &str) {
        let resource = if kind == BATCH_BEGIN || kind == BATCH_END { SUBSYSTEM_NFTABLES } else { 0 };
        let length = u32::try_from(20 + attributes.0.len()).unwrap_or(u32::MAX);
        let sequence = u32::try_from(self.steps.len()).unwrap_or(u32::MAX);
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(REQUEST | flags).to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&0_u32.to_ne_bytes());
        self.bytes.extend_from_slice(&[family, 0]);
        self.bytes.extend_from_slice(&resource.to_be_bytes());
        self.bytes.extend_from_slice(&attributes.0);
        self.steps.push(step.to_owned());
    }

    /// Sends all steps; returns when the kernel has taken them.
    pub(crate) fn commit(mut self) -> Result<(), FilterError> {
        self.message(BATCH_END, 0, FAMILY_ANY, &Attributes::new(), "commit");
        let failed = |error: rustix::io::Errno| FilterError::Socket(error.into());
        let (kind, flags) = (SocketType::RAW, SocketFlags::CLOEXEC);
        let socket =
            socket_with(AddressFamily::NETLINK, kind, flags, Some(netlink::NETFILTER)).map_err(failed)?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(ANSWER_WITHIN)).map_err(failed)?;
        let kernel = netlink::SocketAddrNetlink::new(0, 0);
        sendto(&socket, &self.bytes, SendFlags::empty(), &kernel).map_err(failed)?;

        // The two ends of the batch are not acknowledged.
        let mut expected = self.steps.len().saturating_sub(2);
        let mut buffer = vec![0; 64 << 10];
        while expected > 0 {
            let (_, length) = recv(&socket, buffer.as_mut_slice(), RecvFlags::empty()).map_err(failed)?;
            for (sequence, code) in answers(buffer.get(..length).unwrap_or_default()) {
                expected = expected.saturating_sub(1);
                self.judge(sequence, code)?;
            }
        }
        Ok(())
    }

    fn judge(&self, sequence: u32, code: i32) -> Result<(), FilterError> {
        let error = io::Error::from_raw_os_error(-code);
        if code == 0 {
            return Ok(());
        }
        if error.kind() == io::ErrorKind::PermissionDenied {
            return Err(FilterError::NotPermitted);
        }
        let step = usize::try_from(sequence).ok().and_then(|place| self.steps.get(place));
        Err(FilterError::Refused { step: step.cloned().unwrap_or_else(|| "change the rules".into()), error })
    }
}

/// The kernel's acknowledgements and errors: sequence number and error code (0: done).
fn answers(mut bytes: &[u8]) -> Vec<(u32, i32)> {
    let mut found = Vec::new();
    while let Some((header, _)) = bytes.split_first_chunk::<ERROR_BYTES>() {
        let [l0, l1, l2, l3, k0, k1, _, _, s0, s1, s2, s3, _, _, _, _, c0, c1, c2, c3] = *header;
        if u16::from_ne_bytes([k0, k1]) == ERROR {
            found.push((u32::from_ne_bytes([s0, s1, s2, s3]), i32::from_ne_bytes([c0, c1, c2, c3])));
        }
        let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
        let next = length.max(ERROR_BYTES).checked_next_multiple_of(4).unwrap_or(usize::MAX);
        bytes = bytes.get(next..).unwrap_or_default();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_nest() {
        let inner = Attributes::new().u32(1, 7);
        let outer = Attributes::new().text(3, "ab").nested(4, &inner);
        let expected = [[7, 0, 3, 0, b'a', b'b', 0, 0].as_slice(), &[12, 0, 4, 0x80, 8, 0, 1, 0, 0, 0, 0, 7]];
        assert_eq!(outer.0, expected.concat());
    }

    #[test]
    fn an_error_names_the_step() {
        let transaction = Transaction::new().remove_table("t");
        let refused = transaction.judge(2, -2).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "the kernel refused to remove table t: No such file or directory (os error 2) \
             (it needs nf_tables, conntrack, fib and tproxy)"
        );
        assert!(matches!(transaction.judge(1, -1), Err(FilterError::NotPermitted)));
    }

    #[test]
    fn answers_are_read_one_after_the_other_and_rubbish_ends_them() {
        let mut bytes = Vec::new();
        for (sequence, code) in [(1_u32, 0_i32), (2, -17)] {
            bytes.extend_from_slice(&36_u32.to_ne_bytes());
            bytes.extend_from_slice(&[2, 0, 0, 0]);
            bytes.extend_from_slice(&sequence.to_ne_bytes());
            bytes.extend_from_slice(&[0; 4]);
            bytes.extend_from_slice(&code.to_ne_bytes());
            bytes.extend_from_slice(&[0; 16]);
        }
        assert_eq!(answers(&bytes), [(1, 0), (2, -17)]);
        assert_eq!(answers(&[0xff; 19]), []);
        assert_eq!(answers(&[0xff; 40]), []);
    }
}
