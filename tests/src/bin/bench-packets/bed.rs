//! The measuring programs: loaded once, pointed at the program and packet of each case.

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader, TestRun as _, TestRunOptions,
    maps::{Array, MapData, ProgramArray},
    programs::{ProgramFd, SchedClassifier, Xdp},
};

use crate::cases::{Case, Nodes, Program};

/// How the flow of a packet differs from iteration to iteration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Vary {
    /// It does not.
    One = 0,
    /// A random source port.
    Random = 1,
    /// Another source address and port each time, from the start of a counter that no case shares.
    Each = 2,
}

/// `Plan` of `lb-ebpf/src/bench.rs`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Plan {
    vary: u32,
    counter: u32,
    port_at: u32,
    addr_at: u32,
    len: u32,
    _pad: u32,
    packet: [u8; 120],
}

// SAFETY: integers and bytes without padding.
unsafe impl aya::Pod for Plan {}

/// The measuring programs.
pub(crate) struct Bench {
    ebpf: Ebpf,
    /// Flows made so far by [`Vary::Each`].
    flows: u32,
}

/// Programs of the object, by hook.
const XDP: [&str; 9] = [
    "bench_xdp",
    "floor_return_xdp",
    "floor_parse",
    "floor_hash",
    "floor_lru",
    "floor_translate",
    "floor_insert_two",
    "floor_route",
    "floor_socket",
];
const TC: [&str; 2] = ["bench_tc", "floor_return_tc"];

impl Bench {
    /// From the built object.
    pub(crate) fn load(object: &[u8]) -> Result<Self> {
        let mut ebpf =
            EbpfLoader::new().load(object).context("load the measuring programs (root is needed)")?;
        for name in XDP {
            let program: &mut Xdp = ebpf.program_mut(name).context(name)?.try_into()?;
            program.load().context(name)?;
        }
        for name in TC {
            let program: &mut SchedClassifier = ebpf.program_mut(name).context(name)?.try_into()?;
            program.load().context(name)?;
        }
        Ok(Self { ebpf, flows: 0 })
    }

    /// Nanoseconds an iteration of `case` takes, as the kernel says.
    pub(crate) fn run(&mut self, case: &Case, nodes: &mut Nodes, iterations: u32) -> Result<f64> {
        let bare = match &case.program {
            Program::Bare(name) => Some(*name),
            _ => None,
        };
        let fd = self.program_fd(case, nodes)?;
        self.plan(&case.packet, case.vary)?;
        let name = match (bare, case.program.is_xdp()) {
            (Some(name), _) => name,
            (None, true) => "bench_xdp",
            (None, false) => "bench_tc",
        };
        if bare.is_none() {
            let target = if case.program.is_xdp() { "XDP_TARGET" } else { "TC_TARGET" };
            let mut targets: ProgramArray<&mut MapData> =
                self.ebpf.map_mut(target).context(target)?.try_into()?;
            targets.set(0, &fd, 0)?;
        }
        let (mut code, mut took) = self.iterate(name, case, nodes.uplink(), iterations)?;
        if !case.codes.contains(&code) {
            // The last packet may be the one in some seconds that is left to tc, to probe the neighbour.
            (code, took) = self.iterate(name, case, nodes.uplink(), iterations)?;
        }
        ensure!(case.codes.contains(&code), "{}: return code {code}", case.name);
        self.flows = self.flows.wrapping_add(if case.vary == Vary::Each { iterations } else { 0 });
        Ok(took)
    }

    /// Runs `iterations` of flows made one after the other from the start, so that each is known.
    pub(crate) fn open_flows(&mut self, case: &Case, nodes: &mut Nodes, iterations: u32) -> Result<()> {
        let flows = std::mem::take(&mut self.flows);
        self.run(case, nodes, iterations)?;
        self.flows = flows.max(iterations);
        Ok(())
    }

    fn program_fd(&mut self, case: &Case, nodes: &mut Nodes) -> Result<ProgramFd> {
        Ok(match &case.program {
            Program::Bare(name) | Program::Floor(name) if case.program.is_xdp() => {
                let program: &mut Xdp = self.ebpf.program_mut(name).context(*name)?.try_into()?;
                program.fd()?.try_clone()?
            }
            Program::Bare(name) | Program::Floor(name) => {
                let program: &mut SchedClassifier = self.ebpf.program_mut(name).context(*name)?.try_into()?;
                program.fd()?.try_clone()?
            }
            Program::Xdp => nodes.node(case.services).xdp_program("xdp_uplink_frags").fd()?.try_clone()?,
            Program::Tc(name) => nodes.node(case.services).tc_program(name).fd()?.try_clone()?,
        })
    }

    fn plan(&mut self, packet: &[u8], vary: Vary) -> Result<()> {
        let is_ipv4 = packet[12..14] == [0x08, 0x00];
        let (port_at, addr_at) = if is_ipv4 { (34, 28) } else { (54, 36) };
        let mut head = [0; 120];
        let len = packet.len().min(head.len());
        head[..len].copy_from_slice(&packet[..len]);
        let mut plans: Array<&mut MapData, Plan> = self.ebpf.map_mut("PLAN").context("PLAN")?.try_into()?;
        let (vary, len) = (vary as u32, packet.len() as u32);
        plans.set(0, Plan { vary, counter: self.flows, port_at, addr_at, len, _pad: 0, packet: head }, 0)?;
        Ok(())
    }

    fn iterate(&mut self, name: &str, case: &Case, uplink: u32, repeat: u32) -> Result<(u32, f64)> {
        let packet = case.packet.as_slice();
        let xdp_context = [0, packet.len() as u32, 0, uplink, 0, 0];
        let mut tc_context = [0u32; 48];
        tc_context[10] = uplink;
        let context: &[u8] = if case.program.is_xdp() {
            bytemuck::cast_slice(&xdp_context)
        } else {
            bytemuck::cast_slice(&tc_context)
        };
        let options =
            TestRunOptions { data_in: Some(packet), ctx_in: Some(context), repeat, ..TestRunOptions::new() };
        let program = self.ebpf.program_mut(name).context("no such program")?;
        let result = if case.program.is_xdp() {
            let program: &mut Xdp = program.try_into()?;
            program.test_run(options)
        } else {
            let program: &mut SchedClassifier = program.try_into()?;
            program.test_run(options)
        };
        let result = result.with_context(|| format!("run {}", case.name))?;
        Ok((result.return_value, result.duration.as_nanos() as f64))
    }
}
