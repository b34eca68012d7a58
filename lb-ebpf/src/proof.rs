//! What became of a flood's flows: found in `FLOOD`, or, once they have proved to be conversations, moved to `CONNECTIONS`.

use lb_common::{
    conntrack::{Coarse, ConnectionFlags, ConnectionValue, Phase},
    family::Protocol,
    flood::{mirror, proves},
    flow::FlowKey,
    frontend::FrontendKey,
};

use crate::{
    backend,
    conntrack::{self, NOEXIST, Opening},
    flood, frontend,
    globals::now_ns,
    kinds,
    maps::FamilyMaps,
    parse::Headers,
};

/// Copies the entry of `flow`, wherever it is recorded, to `entry`; false if it is nowhere.
///
/// A copy, so that the verifier need not walk what follows once for each of the two maps.
#[inline(never)]
pub fn read_anywhere<F: FamilyMaps>(flow: &FlowKey<F>, entry: &mut ConnectionValue<F>) -> bool {
    if let Some(found) = conntrack::lookup(flow) {
        *entry = *found;
        return true;
    }
    if flood::is_recent()
        && let Some(found) = flood::lookup(flow)
    {
        *entry = *found;
        return true;
    }
    false
}

/// The entry of the flow of `headers`, which `CONNECTIONS` does not know: in `FLOOD`, or, if this packet proves the flow,
/// in `CONNECTIONS` from here on.
#[inline(never)]
pub fn find<F: FamilyMaps>(
    opening: &mut Opening<F>,
    headers: &Headers<F>,
) -> Option<&'static mut ConnectionValue<F>> {
    let entry = flood::lookup(&headers.flow)?;
    let protocol = headers.flow.protocol;
    opening.key.tuple.reverse_of(&entry.to);
    opening.key.protocol = protocol;
    opening.key._pad = [0; 3];
    let mut answered = false;
    if protocol != Protocol::TCP {
        if entry.flags.has(ConnectionFlags::REPLY) {
            entry.phase = Phase::ESTABLISHED;
        } else {
            // In a tunnel no answer passes here: that the flow lasts must do.
            answered = entry.flags.has(ConnectionFlags::TUNNEL)
                && entry.last_seen != Coarse::from_ns(now_ns())
                || flood::lookup(&opening.key).is_some_and(|reply| reply.phase == Phase::ESTABLISHED);
        }
    }
    if !proves(entry, protocol, headers.tcp_flags, answered) {
        return Some(entry);
    }
    promote(opening, headers, entry)
}

/// Moves a flow, whose packet with `headers` has `entry` and whose other direction's key is in `opening`, to
/// `CONNECTIONS`. A reply 5-tuple that another connection has taken meanwhile leaves it where it is.
#[expect(
    clippy::needless_borrows_for_generic_args,
    reason = "by value, key and value would be copied to the stack first"
)]
#[inline(always)]
fn promote<F: FamilyMaps>(
    opening: &mut Opening<F>,
    headers: &Headers<F>,
    entry: &'static mut ConnectionValue<F>,
) -> Option<&'static mut ConnectionValue<F>> {
    kinds::note(entry.flags, Coarse::from_ns(now_ns()));
    if !entry.flags.has(ConnectionFlags::TUNNEL) {
        mirror(&mut opening.entry, entry, &headers.flow.tuple);
        if F::connections().insert(&opening.key, &opening.entry, NOEXIST).is_err() {
            return Some(entry);
        }
    }
    if F::connections().insert(&headers.flow, &*entry, NOEXIST).is_err() {
        return Some(entry);
    }
    let dialled =
        if entry.flags.has(ConnectionFlags::REPLY) { &opening.key.tuple } else { &headers.flow.tuple };
    let key = FrontendKey::<F>::new(dialled.dst, dialled.dst_port, headers.flow.protocol);
    if let Some(frontend) = frontend::lookup(&key)
        && frontend.service_port == entry.service_port
    {
        backend::bind::<F>(frontend, dialled.src, entry.backend);
    }
    // Gone already if the least recently used gave way.
    let _ = F::flood().remove(&opening.key);
    let _ = F::flood().remove(&headers.flow);
    flood::promoted();
    conntrack::lookup(&headers.flow)
}
