//! What an operator sees of the reconciler: service ports with all they lead to, and backends.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use lb_common::{
    backend::{BackendFlags, BackendState, MemberSets},
    frontend::Scope,
    id::{BackendId, ServicePortId},
};

use crate::{
    desired::{PortRecord, RecordFamily},
    maps::{Maps, dump::socket_address},
    metrics::snapshot::ControlSnapshot,
    model::{
        backend::BackendAddress,
        family::PerFamily,
        service::{Service, ServiceName},
    },
    reconcile::Reconciler,
    report::{BackendReport, FrontendReport, ServicePortReport},
    source::Refusal,
};

use lb_common::family::{V4, V6};

/// `Service` of `Service default/web`; what a file's path begins with is no kind.
fn kind_of(refusal: &Refusal) -> &str {
    let word = refusal.object.split(' ').next().unwrap_or_default();
    if word.contains('/') { "file" } else { word }
}

/// Address of a host → its node.
type Nodes<'a> = HashMap<IpAddr, &'a str>;

impl<M: Maps> Reconciler<M> {
    /// Every service port, by namespace, name and port.
    pub fn service_ports(&self) -> Vec<ServicePortReport> {
        let mut services: Vec<_> = self.model.services().collect();
        services.sort_unstable_by_key(|(name, _)| *name);
        services.into_iter().flat_map(|(name, service)| self.ports_of(name, service)).collect()
    }

    /// Every backend in the maps, by id.
    pub fn backends(&self) -> Vec<BackendReport> {
        let mut nodes = Nodes::new();
        for (name, _) in self.model.services() {
            self.add_nodes(name, &mut nodes);
        }
        let v4 = self.have.v4.backends.iter().map(|(id, value)| (*id, value.state, value.flags));
        let v6 = self.have.v6.backends.iter().map(|(id, value)| (*id, value.state, value.flags));
        let mut reports: Vec<_> = v4
            .chain(v6)
            .filter_map(|(id, state, flags)| self.backend(id, state, flags.has(BackendFlags::LOCAL), &nodes))
            .collect();
        reports.sort_unstable_by_key(|report| report.id);
        reports
    }

    /// What a scrape of metrics needs.
    pub fn snapshot(&self) -> ControlSnapshot {
        let v4 = self.have.v4.backends.keys();
        let backends = v4.chain(self.have.v6.backends.keys());
        let mut refusals = BTreeMap::new();
        for refusal in self.refusals() {
            *refusals.entry(kind_of(&refusal).to_owned()).or_default() += 1;
        }
        ControlSnapshot {
            is_synced: self.stats.is_synced,
            services: self.model.services().count(),
            service_ports: self.desired.service_ports().collect(),
            frontends: PerFamily { v4: self.have.v4.frontends.len(), v6: self.have.v6.frontends.len() },
            backends: backends.filter_map(|id| Some((*id, self.desired.backend(*id)?))).collect(),
            no_local: self.desired.no_local(),
            refusals,
        }
    }

    fn add_nodes<'a>(&'a self, name: &ServiceName, nodes: &mut Nodes<'a>) {
        let hosts = self.model.slices(name).flat_map(|slice| &slice.groups).flat_map(|group| &group.hosts);
        nodes.extend(hosts.filter_map(|host| Some((host.addr, host.node.as_deref()?))));
    }

    fn ports_of(&self, name: &ServiceName, service: &Service) -> Vec<ServicePortReport> {
        let mut nodes = Nodes::new();
        self.add_nodes(name, &mut nodes);
        let ports = self.desired.ports_of(name);
        ports.filter_map(|(id, record)| self.port(name, service, (id, record), &nodes)).collect()
    }

    fn port(
        &self,
        name: &ServiceName,
        service: &Service,
        (id, record): (ServicePortId, &PortRecord),
        nodes: &Nodes<'_>,
    ) -> Option<ServicePortReport> {
        let port = record.port()?;
        let mut frontends = self.frontends::<V4>(id, record);
        frontends.extend(self.frontends::<V6>(id, record));
        let members = record.members().iter();
        let source_ranges = service.source_ranges.iter().flatten().map(ToString::to_string).collect();
        Some(ServicePortReport {
            id: id.0,
            namespace: name.namespace.to_string(),
            name: name.name.to_string(),
            port_name: port.name.to_string(),
            protocol: port.protocol.name().to_owned(),
            internal_traffic_policy: service.internal_policy.name().to_owned(),
            external_traffic_policy: service.external_policy.name().to_owned(),
            affinity_timeout_s: service.affinity_timeout_s,
            algorithm: record.algorithm().name().to_owned(),
            forwarding: record.forwarding().name().to_owned(),
            source_ranges,
            frontends,
            backends: members
                .filter_map(|member| self.backend(member.backend, member.state, member.is_local, nodes))
                .collect(),
        })
    }

    /// Those that are in the maps and this service port's.
    fn frontends<F: RecordFamily>(&self, id: ServicePortId, record: &PortRecord) -> Vec<FrontendReport> {
        let own = record
            .frontends::<F>()
            .keys()
            .filter_map(|key| Some((key, F::of(&self.have).frontends.get(key)?)));
        own.filter(|(_, value)| value.service_port == id)
            .map(|(key, value)| FrontendReport {
                kind: value.kind.name().to_owned(),
                address: socket_address(key.addr, key.port).to_string(),
                internal: self.choices::<F>(record, value.member_set(Scope::Internal)),
                external: self.choices::<F>(record, value.member_set(Scope::External)),
            })
            .collect()
    }

    /// How many of the record's backends in family `F` stand in the set.
    fn choices<F: RecordFamily>(&self, record: &PortRecord, set: MemberSets) -> usize {
        let members = record.members().iter().filter(|member| member.sets.has(set));
        members.filter(|member| F::of(&self.have).backends.contains_key(&member.backend)).count()
    }

    fn backend(
        &self,
        id: BackendId,
        state: BackendState,
        local: bool,
        nodes: &Nodes<'_>,
    ) -> Option<BackendReport> {
        let BackendAddress { addr, port, protocol } = self.desired.backend(id)?;
        Some(BackendReport {
            id: id.0,
            address: std::net::SocketAddr::new(addr, port).to_string(),
            protocol: protocol.name().to_owned(),
            state: state.name().to_owned(),
            local,
            node: nodes.get(&addr).map(|node| (*node).to_owned()),
        })
    }
}
