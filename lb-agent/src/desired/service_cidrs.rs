//! The networks ClusterIPs are taken from, as the maps should hold them: `limits::SERVICE_CIDRS_MAX` of each family,
//! the lowest first; the rest is refused. Networks that several objects name count once (spec 5.13).

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use lb_common::{
    cidr::CidrValue,
    family::{Address as _, V4, V6},
    limits,
};

use crate::{
    desired::Target,
    diff::DeltaFamily,
    model::Model,
    source::{Kind, ObjectRef, Refusal},
};

/// Wants the networks of the model's ServiceCIDR objects and no other.
pub fn want(model: &Model, target: &mut Target<'_>) {
    let cidrs = model.service_cidrs();
    want_family::<V4>(&cidrs, target);
    want_family::<V6>(&cidrs, target);
}

fn want_family<F: DeltaFamily>(cidrs: &BTreeSet<IpNet>, target: &mut Target<'_>) {
    let entries = select::<F>(cidrs);
    for index in 0..limits::SERVICE_CIDRS_MAX {
        target.delta.want_service_cidr::<F>(target.have, index, entries.get(&index).copied());
    }
}

/// The entries of a family's map by their place.
fn select<F: DeltaFamily>(cidrs: &BTreeSet<IpNet>) -> BTreeMap<u32, CidrValue<F>> {
    let entries = cidrs.iter().filter_map(|cidr| {
        let (network, mask) = (F::Addr::from_ip(cidr.network())?, F::Addr::from_ip(cidr.netmask())?);
        Some(CidrValue { network, mask, used: 1 })
    });
    (0..limits::SERVICE_CIDRS_MAX).zip(entries).collect()
}

/// The networks there is no place for, by the objects that name them.
pub fn refusals(model: &Model) -> BTreeSet<Refusal> {
    let cidrs = model.service_cidrs();
    let max = usize::try_from(limits::SERVICE_CIDRS_MAX).unwrap_or(usize::MAX);
    let v4 = cidrs.iter().filter(|cidr| cidr.addr().is_ipv4()).skip(max);
    let v6 = cidrs.iter().filter(|cidr| cidr.addr().is_ipv6()).skip(max);
    let surplus: BTreeSet<&IpNet> = v4.chain(v6).collect();
    let named = model.service_cidr_objects();
    named.filter(|(_, cidr)| surplus.contains(cidr)).map(|(name, cidr)| refusal(name, cidr)).collect()
}

fn refusal(name: &str, cidr: &IpNet) -> Refusal {
    let id = ObjectRef { kind: Kind::ServiceCidr, namespace: String::new(), name: name.to_owned() };
    Refusal {
        object: id.to_string(),
        field: "spec.cidrs".to_owned(),
        reason: format!(
            "{cidr}: only {} networks of a family are used; what this one holds is not refused",
            limits::SERVICE_CIDRS_MAX
        ),
    }
}
