//! Counts verdicts, and tells them to `EVENTS` when someone listens.

use lb_common::{
    counters::TrafficCounter,
    event::Event,
    family::{Address as _, Family},
    flow::{FlowKey, slot_index},
    id::{BackendId, ServicePortId},
    verdict::Verdict,
};

use crate::{
    globals::{now_ns, random},
    maps::{BACKEND_COUNTERS, COUNTERS, EVENTS, SERVICE_COUNTERS, SETTINGS},
};

/// A verdict with what it was about.
#[derive(Clone, Copy)]
#[must_use]
pub struct Outcome {
    /// What was decided.
    pub verdict: Verdict,
    /// The service port, if one was found.
    pub service_port: ServicePortId,
    /// The backend, if one was chosen.
    pub backend: BackendId,
}

impl Outcome {
    /// A verdict about no service port.
    #[inline(always)]
    pub const fn of(verdict: Verdict) -> Self {
        Self { verdict, service_port: ServicePortId::NONE, backend: BackendId::NONE }
    }

    /// A verdict about a service port without a backend.
    #[inline(always)]
    pub const fn about(verdict: Verdict, service_port: ServicePortId) -> Self {
        Self { verdict, service_port, backend: BackendId::NONE }
    }
}

/// What an outcome is about to be counted with.
pub struct Seen<'a, F: Family> {
    /// The flow as it came.
    pub flow: &'a FlowKey<F>,
    /// Bytes of the packet; 0 for a socket call.
    pub bytes: u32,
    /// Device; 0 for a socket call.
    pub ifindex: u32,
}

/// Counts a verdict that is about nothing of ours.
#[inline(always)]
pub fn count_verdict(verdict: Verdict, bytes: u32) {
    if let Some(counter) = COUNTERS.get_ptr_mut(verdict as u32) {
        // SAFETY: this CPU's own slot; programs do not preempt each other on it except by interrupt, where a lost
        // increment is the worst.
        unsafe {
            (*counter).packets += 1;
            (*counter).bytes += bytes as u64;
        }
    }
}

/// [`count`] as a BPF function of its own.
#[inline(never)]
pub fn count_apart<F: Family>(outcome: Outcome, seen: &Seen<'_, F>) {
    count(outcome, seen);
}

/// Counts an outcome by verdict, service port and backend, and samples it if events are wanted.
#[inline(always)]
pub fn count<F: Family>(outcome: Outcome, seen: &Seen<'_, F>) {
    count_verdict(outcome.verdict, seen.bytes);
    let refused = outcome.verdict.is_refusal();
    let translated = seen.bytes > 0 && !refused;
    let change = |counter: *mut TrafficCounter| {
        // SAFETY: this CPU's own slot, as in `count_verdict`.
        unsafe {
            (*counter).refused += refused as u64;
            if translated {
                (*counter).packets += 1;
                (*counter).bytes += seen.bytes as u64;
            }
        }
    };
    if outcome.service_port != ServicePortId::NONE {
        SERVICE_COUNTERS.get_ptr_mut(outcome.service_port.0).map(change);
    }
    if outcome.backend != BackendId::NONE {
        BACKEND_COUNTERS.get_ptr_mut(outcome.backend.0).map(change);
    }
    if SETTINGS.get(0).is_some_and(|settings| settings.events_sample != 0) {
        sample(outcome, seen);
    }
}

/// Counts a connection given to a backend.
#[inline(always)]
pub fn count_connection(service_port: ServicePortId, backend: BackendId) {
    // SAFETY: this CPU's own slot, as in `count_verdict`.
    let change = |counter: *mut TrafficCounter| unsafe { (*counter).connections += 1 };
    SERVICE_COUNTERS.get_ptr_mut(service_port.0).map(change);
    BACKEND_COUNTERS.get_ptr_mut(backend.0).map(change);
}

/// Writes one in `events_sample` outcomes to `EVENTS`. A full buffer loses them.
#[inline(never)]
fn sample<F: Family>(outcome: Outcome, seen: &Seen<'_, F>) {
    let Some(settings) = SETTINGS.get(0).copied() else { return };
    if settings.events_sample == 0
        || (settings.events_drops_only != 0 && !outcome.verdict.is_refusal())
        || (settings.events_service_port != 0 && settings.events_service_port != outcome.service_port.0)
        || slot_index(random(), settings.events_sample) != 0
    {
        return;
    }
    // Written in place: the stack has no room for it.
    let Some(mut entry) = EVENTS.reserve(0) else { return };
    entry.write(Event {
        time_ns: now_ns(),
        service_port: outcome.service_port,
        backend: outcome.backend,
        ifindex: seen.ifindex,
        verdict: outcome.verdict as u32,
        src: [0; 16],
        dst: [0; 16],
        src_port: seen.flow.tuple.src_port,
        dst_port: seen.flow.tuple.dst_port,
        protocol: seen.flow.protocol,
        family: if F::Addr::WORDS == 1 { 4 } else { 6 },
        _pad: [0; 2],
    });
    let event = entry.as_mut_ptr();
    let mut index = 0;
    while index < F::Addr::WORDS {
        // SAFETY: `write` initialised the reserved record; both arrays hold four words.
        unsafe {
            (&raw mut (*event).src).cast::<u32>().add(index).write(seen.flow.tuple.src.word(index));
            (&raw mut (*event).dst).cast::<u32>().add(index).write(seen.flow.tuple.dst.word(index));
        }
        index += 1;
    }
    entry.submit(0);
}
