//! Services of a test, and how the maps hold them.

use std::net::IpAddr;

use aya::Pod;
use lb_agent::{
    desired::maglev::{self, TableSize},
    model::backend::BackendAddress,
};
use lb_common::{
    backend::{BackendFlags, BackendState, BackendValue, MemberKey, MemberSets, MemberValue},
    bit_set,
    family::{Address as _, Be16, Family, Protocol},
    frontend::{FrontendFlags, FrontendKey, FrontendKind, FrontendValue, Run},
    id::{BackendId, ServicePortId},
    limits, maps,
};

use super::{Node, name};

/// A service port to be: its frontend and backends.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its id.
    pub id: u32,
    /// What clients dial.
    pub vip: (IpAddr, u16),
    /// Protocol of frontend and backends.
    pub protocol: Protocol,
    /// Flags of the frontend.
    pub flags: FrontendFlags,
    /// Where the frontend comes from.
    pub kind: FrontendKind,
    /// Affinity timeout in seconds.
    pub affinity_timeout_s: u32,
    /// First slot and first backend id; runs of several services must not overlap.
    pub base: u32,
    /// Who serves: ids from `base` on.
    pub backends: Vec<Server>,
}

/// A backend to be.
#[derive(Clone, Copy, Debug)]
pub struct Server {
    /// Where.
    pub addr: (IpAddr, u16),
    /// On this node?
    pub local: bool,
}

impl Service {
    /// A service port with one frontend and these backends.
    pub fn new(vip: (IpAddr, u16), protocol: Protocol, backends: &[Server]) -> Self {
        Self {
            id: 1,
            vip,
            protocol,
            flags: FrontendFlags::default(),
            kind: FrontendKind::CLUSTER_IP,
            affinity_timeout_s: 0,
            base: 1,
            backends: backends.to_vec(),
        }
    }

    /// Its backends with their ids.
    fn ids(&self) -> impl Iterator<Item = (BackendId, &Server)> {
        (self.base..).map(BackendId).zip(&self.backends)
    }

    /// The run of its backends on this node, which come last.
    fn own(&self) -> Run {
        let count = self.backends.iter().filter(|server| server.local).count() as u32;
        let base = if count == 0 { 0 } else { self.base + self.backends.len() as u32 - count };
        Run { base, count }
    }

    /// Its id as the maps have it.
    pub fn service_port(&self) -> ServicePortId {
        ServicePortId(self.id)
    }
}

impl Node {
    /// Writes a service port into the maps: every backend in both sets and in one run for both scopes.
    pub fn serve<F: Family>(&mut self, service: &Service)
    where
        FrontendKey<F>: Pod,
        BackendValue<F>: Pod,
    {
        for (index, server) in service.ids() {
            let value = BackendValue::<F> {
                addr: F::Addr::from_ip(server.addr.0).unwrap(),
                port: Be16::new(server.addr.1),
                protocol: service.protocol,
                state: BackendState::ACTIVE,
                flags: if server.local { BackendFlags::LOCAL } else { BackendFlags::default() },
                node: F::Addr::default(),
            };
            self.hash(&name::<F>("BACKENDS")).insert(index, value, 0).unwrap();
            self.add_bit(maps::TARGET_PORTS, server.addr.1);
            self.member(service, index, MemberSets::CLUSTER.with(MemberSets::LOCAL));
            self.array("SLOTS").set(index.0, index.0, 0).unwrap();
        }
        self.frontend::<F>(service, Run { base: service.base, count: service.backends.len() as u32 });
    }

    /// Lets tunnels for a service port's backends end at these nodes, by turns.
    pub fn reach_at<F: Family>(&mut self, service: &Service, nodes: &[IpAddr])
    where
        BackendValue<F>: Pod,
    {
        for ((id, _), node) in service.ids().zip(nodes.iter().cycle()) {
            let mut backends = self.hash::<BackendId, BackendValue<F>>(&name::<F>("BACKENDS"));
            let value = backends.get(&id, 0).unwrap();
            backends.insert(id, BackendValue { node: F::Addr::from_ip(*node).unwrap(), ..value }, 0).unwrap();
        }
    }

    /// Gives a service port whose backends are written the Maglev table the agent would give it, from slot `base` on.
    pub fn serve_by_table<F: Family>(&mut self, service: &Service, base: u32, size: TableSize)
    where
        FrontendKey<F>: Pod,
    {
        let address = |server: &Server| BackendAddress {
            addr: server.addr.0,
            port: server.addr.1,
            protocol: service.protocol,
        };
        let backends = service.ids().map(|(id, server)| (address(server), id)).collect();
        for (slot, id) in (base..).zip(maglev::build(backends, size)) {
            self.array("SLOTS").set(slot, id.0, 0).unwrap();
        }
        self.frontend::<F>(service, Run { base, count: size.get() });
    }

    /// Writes a service port's frontend, which finds its backends in `run`.
    fn frontend<F: Family>(&mut self, service: &Service, run: Run)
    where
        FrontendKey<F>: Pod,
    {
        let key = FrontendKey::<F>::new(
            F::Addr::from_ip(service.vip.0).unwrap(),
            Be16::new(service.vip.1),
            service.protocol,
        );
        let value = FrontendValue {
            service_port: service.service_port(),
            flags: service.flags,
            kind: service.kind,
            affinity_timeout_s: service.affinity_timeout_s,
            internal: run,
            external: run,
            own: service.own(),
            ..FrontendValue::default()
        };
        self.hash(&name::<F>("FRONTENDS")).insert(key, value, 0).unwrap();
        self.add_bit(maps::PORTS, key.port.get());
    }

    /// Adds a number to a set of bits.
    pub(super) fn add_bit(&mut self, set: &str, number: u16) {
        let word: u64 = self.array(set).get(&bit_set::word(number), 0).unwrap();
        self.array(set).set(bit_set::word(number), word | bit_set::bit(number), 0).unwrap();
    }

    /// Empties the set of ports that frontends use.
    pub fn clear_ports(&mut self) {
        (0..limits::BIT_SET_WORDS).for_each(|index| self.array("PORTS").set(index, 0u64, 0).unwrap());
    }

    /// Takes a service port's frontend out of the maps.
    pub fn delete_frontend<F: Family>(&mut self, service: &Service)
    where
        FrontendKey<F>: Pod,
    {
        let addr = F::Addr::from_ip(service.vip.0).unwrap();
        let key = FrontendKey::<F>::new(addr, Be16::new(service.vip.1), service.protocol);
        self.hash::<_, FrontendValue>(&name::<F>("FRONTENDS")).remove(&key).unwrap();
    }

    /// Makes a backend a member in `sets`.
    pub fn member(&mut self, service: &Service, backend: BackendId, sets: MemberSets) {
        let key = MemberKey { service_port: service.service_port(), backend };
        self.hash("MEMBERS").insert(key, MemberValue::new(BackendState::ACTIVE, sets), 0).unwrap();
    }

    /// Takes a backend out of a service port and moves its generation.
    pub fn leave(&mut self, service: &Service, backend: BackendId) {
        let key = MemberKey { service_port: service.service_port(), backend };
        self.hash::<MemberKey, MemberValue>("MEMBERS").remove(&key).unwrap();
        let generation = self.array::<u32>("GENERATIONS").get(&service.id, 0).unwrap();
        self.set_generation(service.service_port(), generation + 1);
    }
}
