//! The host's conntrack through ctnetlink: of each flow that netfilter gave another source, the answer it waits for.
//! Needs CAP_NET_ADMIN in the namespace of the calling thread, which is the one that is read.

use std::{collections::HashSet, hash::Hash, io, net::IpAddr};

use lb_common::{
    family::{Address as _, Be16, Family, Protocol},
    flow::{FlowKey, Tuple},
};
use netlink_packet_core::{
    DefaultNla, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    conntrack::{self, ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Status},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use super::HostFlows;
use crate::config::PortRange;

/// Which bits of `CTA_STATUS` a dump asks for (`enum ctattr_type`). Older kernels show every flow.
const CTA_STATUS_MASK: u16 = 26;
/// More than the kernel puts into one datagram of a dump (32 KiB).
const DATAGRAM_MAX: usize = 1 << 16;

/// Why conntrack cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ConntrackError {
    /// The kernel did not answer, or refused.
    #[error("{what}: {source}")]
    Netlink {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The answer was no conntrack message.
    #[error("ctnetlink answered what cannot be read: {0}")]
    Decode(String),
}

/// The answers that flows with another source wait for on a port of `ports`; of each family `limit` at most.
pub(super) fn dump(ports: PortRange, limit: u32) -> Result<HostFlows, ConntrackError> {
    let open = || {
        let socket = Socket::new(NETLINK_NETFILTER)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.send(&request(), 0)?;
        Ok(socket)
    };
    let socket = open().map_err(failed("ask ctnetlink"))?;
    let mut flows = HostFlows::default();
    let mut datagram = Vec::with_capacity(DATAGRAM_MAX);
    loop {
        datagram.clear();
        socket.recv(&mut datagram, 0).map_err(failed("read from ctnetlink"))?;
        let mut rest = &datagram[..];
        while !rest.is_empty() {
            let message = decode(rest)?;
            // Messages begin at multiples of four bytes (netlink(7)).
            let length = (message.header.length as usize).next_multiple_of(4).max(4);
            rest = rest.get(length..).unwrap_or_default();
            match message.payload {
                NetlinkPayload::InnerMessage(message) => {
                    if let Some(answer) = answer(&message) {
                        flows.add(answer, ports, limit as usize);
                    }
                }
                NetlinkPayload::Error(error) => {
                    return Err(failed("list conntrack (CAP_NET_ADMIN)")(error.to_io()));
                }
                NetlinkPayload::Done(_) => return Ok(flows),
                _ => {}
            }
        }
    }
}

/// A dump of both families, of flows whose source was translated.
fn request() -> Vec<u8> {
    let mask = DefaultNla::new(CTA_STATUS_MASK, Status::SrcNat.bits().to_be_bytes().to_vec());
    let attributes = vec![ConntrackAttribute::CtaStatus(Status::SrcNat), ConntrackAttribute::Other(mask)];
    let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0);
    let message = NetfilterMessage::new(header, ConntrackMessage::Get(attributes));
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
    packet.finalize();
    let mut bytes = vec![0; packet.buffer_len()];
    packet.serialize(&mut bytes);
    bytes
}

fn decode(bytes: &[u8]) -> Result<NetlinkMessage<NetfilterMessage>, ConntrackError> {
    NetlinkMessage::deserialize(bytes).map_err(|error| ConntrackError::Decode(error.to_string()))
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> ConntrackError {
    move |source| ConntrackError::Netlink { what, source }
}

/// A packet that a flow waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Answer {
    protocol: Protocol,
    src: (IpAddr, u16),
    dst: (IpAddr, u16),
}

/// The answer to a flow whose source was translated; `None` for any other, or one without ports.
fn answer(message: &NetfilterMessage) -> Option<Answer> {
    let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = &message.inner else {
        return None;
    };
    let has_other_source = attributes.iter().any(
        |attribute| matches!(attribute, ConntrackAttribute::CtaStatus(status) if status.contains(Status::SrcNat)),
    );
    let reply = attributes.iter().find_map(|attribute| match attribute {
        ConntrackAttribute::CtaTupleReply(reply) => Some(reply),
        _ => None,
    })?;
    if !has_other_source {
        return None;
    }
    let (mut addrs, mut ports, mut protocol) = ([None; 2], [None; 2], None);
    for part in reply {
        match part {
            conntrack::Tuple::Ip(ips) => ips.iter().for_each(|ip| match ip {
                IPTuple::SourceAddress(addr) => addrs[0] = Some(*addr),
                IPTuple::DestinationAddress(addr) => addrs[1] = Some(*addr),
                _ => {}
            }),
            conntrack::Tuple::Proto(parts) => parts.iter().for_each(|part| match part {
                ProtoTuple::Protocol(number) => protocol = Some(Protocol(u8::from(*number))),
                ProtoTuple::SourcePort(port) => ports[0] = Some(*port),
                ProtoTuple::DestinationPort(port) => ports[1] = Some(*port),
                _ => {}
            }),
            _ => {}
        }
    }
    let [src, dst] = [addrs[0].zip(ports[0])?, addrs[1].zip(ports[1])?];
    Some(Answer { protocol: protocol?, src, dst })
}

impl HostFlows {
    fn add(&mut self, answer: Answer, ports: PortRange, limit: usize) {
        if !ports.contains(answer.dst.1) {
            return;
        }
        let has_room = match answer.dst.0 {
            IpAddr::V4(_) => insert(&mut self.v4, key(answer), limit),
            IpAddr::V6(_) => insert(&mut self.v6, key(answer), limit),
        };
        self.left_out += usize::from(!has_room);
    }
}

/// False if there is no room.
fn insert<K: Eq + Hash>(set: &mut HashSet<K>, key: Option<K>, limit: usize) -> bool {
    let has_room = set.len() < limit;
    set.extend(key.filter(|_| has_room));
    has_room
}

fn key<F: Family>(Answer { protocol, src, dst }: Answer) -> Option<FlowKey<F>> {
    let tuple = Tuple {
        src: F::Addr::from_ip(src.0)?,
        dst: F::Addr::from_ip(dst.0)?,
        src_port: Be16::new(src.1),
        dst_port: Be16::new(dst.1),
    };
    Some(FlowKey::new(tuple, protocol))
}

#[cfg(test)]
mod tests {
    use netlink_packet_netfilter::conntrack::Protocol as Number;

    use super::*;

    const BACKEND: (&str, u16) = ("10.244.2.10", 8080);

    /// What ctnetlink says of a flow whose answers go from `src` to `dst`.
    fn entry(status: Status, number: Number, src: (&str, u16), dst: (&str, u16)) -> NetfilterMessage {
        let ips = vec![
            IPTuple::SourceAddress(src.0.parse().unwrap()),
            IPTuple::DestinationAddress(dst.0.parse().unwrap()),
        ];
        let parts = match number {
            Number::Icmp => vec![ProtoTuple::Protocol(number)],
            _ => vec![
                ProtoTuple::Protocol(number),
                ProtoTuple::SourcePort(src.1),
                ProtoTuple::DestinationPort(dst.1),
            ],
        };
        let reply = vec![conntrack::Tuple::Ip(ips), conntrack::Tuple::Proto(parts)];
        let attributes = vec![
            ConntrackAttribute::CtaTupleOrig(Vec::new()),
            ConntrackAttribute::CtaTupleReply(reply),
            ConntrackAttribute::CtaStatus(status),
        ];
        let header = NetfilterHeader::new(NetfilterProtoFamily::IPv4, 0, 0);
        NetfilterMessage::new(header, ConntrackMessage::New(attributes))
    }

    /// The same from the wire.
    fn over_the_wire(message: NetfilterMessage) -> NetfilterMessage {
        let mut packet = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        let NetlinkPayload::InnerMessage(message) = decode(&bytes).unwrap().payload else {
            panic!("no message")
        };
        message
    }

    #[test]
    fn answers_of_flows_with_another_source_are_read() {
        let nat = Status::SrcNat | Status::SrcNatDone | Status::Confirmed;
        let six = (("fd00:244:2::10", 53), ("2001:db8:2::11", 1024));
        let rows = [
            ("TCP", entry(nat, Number::Tcp, BACKEND, ("192.0.2.11", 2000)), Some(Protocol::TCP)),
            ("SCTP", entry(nat, Number::Sctp, BACKEND, ("192.0.2.11", 2000)), Some(Protocol::SCTP)),
            ("UDP over IPv6", entry(nat, Number::Udp, six.0, six.1), Some(Protocol::UDP)),
            ("ICMP has no ports", entry(nat, Number::Icmp, BACKEND, ("192.0.2.11", 2000)), None),
            ("its own source", entry(Status::Confirmed, Number::Tcp, BACKEND, ("192.0.2.11", 2000)), None),
            ("another destination", entry(Status::DstNat, Number::Tcp, BACKEND, ("192.0.2.11", 2000)), None),
        ];
        for (name, message, expected) in rows {
            let found = answer(&over_the_wire(message));
            assert_eq!(found.map(|answer| answer.protocol), expected, "{name}");
        }
        let found = answer(&over_the_wire(entry(nat, Number::Udp, six.0, six.1))).unwrap();
        assert_eq!(
            (found.src, found.dst),
            ((six.0.0.parse().unwrap(), 53), (six.1.0.parse().unwrap(), 1024))
        );
    }

    #[test]
    fn flows_are_kept_by_port_and_up_to_the_limit() {
        let ports = PortRange { min: 2000, max: 2003 };
        let mut flows = HostFlows::default();
        for port in 1990..2010 {
            for (src, dst) in [("10.244.2.10", "192.0.2.11"), ("fd00:244:2::10", "2001:db8:2::11")] {
                let (src, dst) = (src.parse().unwrap(), dst.parse().unwrap());
                flows.add(Answer { protocol: Protocol::TCP, src: (src, 80), dst: (dst, port) }, ports, 3);
            }
        }
        assert_eq!((flows.v4.len(), flows.v6.len(), flows.left_out), (3, 3, 2));
        assert!(flows.v4.iter().all(|key| (2000..2003).contains(&key.tuple.dst_port.get())));
        assert!(flows.v6.iter().all(|key| key.tuple.src_port.get() == 80));
    }

    #[test]
    fn the_kernel_is_asked_for_both_families_and_for_other_sources_only() {
        let bytes = request();
        let message = over_the_wire(
            decode(&bytes)
                .map(|packet| match packet.payload {
                    NetlinkPayload::InnerMessage(message) => message,
                    other => panic!("{other:?}"),
                })
                .unwrap(),
        );
        assert_eq!(message.header.family, NetfilterProtoFamily::Unspec);
        let NetfilterMessageInner::Conntrack(ConntrackMessage::Get(attributes)) = message.inner else {
            panic!("no request")
        };
        assert_eq!(attributes[0], ConntrackAttribute::CtaStatus(Status::SrcNat));
        assert_eq!(
            attributes[1],
            ConntrackAttribute::Other(DefaultNla::new(CTA_STATUS_MASK, vec![0, 0, 0, 16]))
        );
    }
}
