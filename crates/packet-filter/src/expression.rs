//! What a rule is made of: nf_tables expressions and their netlink form.
//!
//! Numbers are those of Linux' `include/uapi/linux/netfilter/nf_tables.h` and `netfilter.h`. Attribute
//! integers are big-endian; compared values have the byte order of what they are compared with.

use crate::netlink::Attributes;

pub(crate) const PREROUTING: u32 = 0;
pub(crate) const INPUT: u32 = 1;
pub(crate) const FORWARD: u32 = 2;

const REGISTER: u32 = 1;
const VERDICT_REGISTER: u32 = 0;
const META_MARK: u32 = 3;
const META_INPUT_INTERFACE: u32 = 4;
const META_L4_PROTOCOL: u32 = 16;
const CT_STATE: u32 = 0;
const CT_DIRECTION: u32 = 1;
const CT_STATE_RELATED: u32 = 4;
const DIRECTION_REPLY: u8 = 1;
const FIB_ADDRESS_TYPE: u32 = 3;
const FIB_OF_DESTINATION: u32 = 2;
const ROUTE_LOCAL: u32 = 2;
const TRANSPORT_HEADER: u32 = 2;
const VERDICT_ACCEPT: u32 = 1;
/// The loopback interface's index, the same in each network namespace. A name could be given to another.
const LOOPBACK_INDEX: u32 = 1;
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;
const AT_MOST: u32 = 3;
const AT_LEAST: u32 = 5;

/// One expression of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Expression {
    pub(crate) name: &'static str,
    pub(crate) data: Attributes,
}

impl Expression {
    pub(crate) fn accept() -> Self {
        let verdict = Attributes::new().u32(1, VERDICT_ACCEPT);
        let data = Attributes::new().nested(2, &verdict);
        Self { name: "immediate", data: Attributes::new().u32(1, VERDICT_REGISTER).nested(2, &data) }
    }

    pub(crate) fn from_loopback() -> Vec<Self> {
        vec![Self::meta(META_INPUT_INTERFACE), Self::compare(EQUAL, &LOOPBACK_INDEX.to_ne_bytes())]
    }

    pub(crate) fn mark_is(mark: u32) -> Vec<Self> {
        vec![Self::meta(META_MARK), Self::compare(EQUAL, &mark.to_ne_bytes())]
    }

    pub(crate) fn set_mark(mark: u32) -> Vec<Self> {
        let set = Self { name: "meta", data: Attributes::new().u32(2, META_MARK).u32(3, REGISTER) };
        vec![Self::load(&mark.to_ne_bytes()), set]
    }

    pub(crate) fn protocol_is(protocol: u8) -> Vec<Self> {
        vec![Self::meta(META_L4_PROTOCOL), Self::compare(EQUAL, &[protocol])]
    }

    /// TCP and UDP have the destination port at the same place.
    pub(crate) fn to_port(port: u16) -> Vec<Self> {
        vec![Self::transport(2, 2), Self::compare(EQUAL, &port.to_be_bytes())]
    }

    pub(crate) fn icmp_type_within(first: u8, last: u8) -> Vec<Self> {
        vec![Self::transport(0, 1), Self::compare(AT_LEAST, &[first]), Self::compare(AT_MOST, &[last])]
    }

    /// Belongs to a connection that this host began.
    pub(crate) fn is_answer() -> Vec<Self> {
        vec![Self::connection(CT_DIRECTION), Self::compare(EQUAL, &[DIRECTION_REPLY])]
    }

    /// An error message about a connection that exists.
    pub(crate) fn is_related() -> Vec<Self> {
        let value = |bytes: u32| Attributes::new().bytes(1, &bytes.to_ne_bytes());
        let mask = Attributes::new().u32(1, REGISTER).u32(2, REGISTER).u32(3, 4);
        let mask = mask.nested(4, &value(CT_STATE_RELATED)).nested(5, &value(0));
        let mask = Self { name: "bitwise", data: mask };
        vec![Self::connection(CT_STATE), mask, Self::compare(NOT_EQUAL, &0_u32.to_ne_bytes())]
    }

    pub(crate) fn not_to_this_host() -> Vec<Self> {
        let data = Attributes::new().u32(1, REGISTER).u32(2, FIB_ADDRESS_TYPE).u32(3, FIB_OF_DESTINATION);
        vec![Self { name: "fib", data }, Self::compare(NOT_EQUAL, &ROUTE_LOCAL.to_ne_bytes())]
    }

    /// Hands the packet to a transparent socket on `port`; the rule ends here if there is none.
    pub(crate) fn hand_to(port: u16) -> Vec<Self> {
        let any_family = 0;
        let data = Attributes::new().u32(1, any_family).u32(3, REGISTER);
        vec![Self::load(&port.to_be_bytes()), Self { name: "tproxy", data }]
    }

    fn meta(key: u32) -> Self {
        Self { name: "meta", data: Attributes::new().u32(1, REGISTER).u32(2, key) }
    }

    fn connection(key: u32) -> Self {
        Self { name: "ct", data: Attributes::new().u32(1, REGISTER).u32(2, key) }
    }

    fn transport(offset: u32, length: u32) -> Self {
        let data = Attributes::new().u32(1, REGISTER).u32(2, TRANSPORT_HEADER).u32(3, offset).u32(4, length);
        Self { name: "payload", data }
    }

    fn compare(operation: u32, with: &[u8]) -> Self {
        let value = Attributes::new().bytes(1, with);
        let data = Attributes::new().u32(1, REGISTER).u32(2, operation).nested(3, &value);
        Self { name: "cmp", data }
    }

    fn load(value: &[u8]) -> Self {
        let value = Attributes::new().bytes(1, value);
        Self { name: "immediate", data: Attributes::new().u32(1, REGISTER).nested(2, &value) }
    }
}
