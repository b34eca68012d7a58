//! Loads every program of the BPF object into the running kernel and prints, a line each, its name and `ok` with the
//! instructions verified, or the end of the verifier's log. The init of the old kernel's VM runs it ([`lb_tests::vm`]).
//!
//! `load-programs [OBJECT]`: the agent's own object unless another is named.

use std::process::ExitCode;

use aya::{
    Ebpf, EbpfLoader,
    maps::MapType,
    programs::{Program, ProgramError},
};
use lb_agent::datapath::globals::Globals;
use lb_common::maps::MAPS;

/// Enough to load; a small VM has no room for more.
const ENTRIES_MAX: u32 = 1024;
/// Bytes of the verifier's log worth printing: the end says why.
const LOG_BYTES: usize = 1500;
/// The program that `--forward-pods` makes another.
const OF_PODS: &str = "tc_workload_ingress";

fn main() -> ExitCode {
    match load() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("object FAILED {error:?}");
            ExitCode::FAILURE
        }
    }
}

fn load() -> anyhow::Result<bool> {
    let named = std::env::args_os().nth(1).map(std::fs::read).transpose()?;
    let object = named.as_deref().unwrap_or(lb_agent::datapath::OBJECT);
    let mut all = true;
    for (name, program) in maps(object, 0)?.programs_mut() {
        all &= is_loaded(name, program);
    }
    for (name, program) in maps(object, 1)?.programs_mut().filter(|(name, _)| *name == OF_PODS) {
        all &= is_loaded(&format!("{name} --forward-pods"), program);
    }
    Ok(all)
}

/// Creates the maps of an object whose programs send on what pods dial, or do not.
fn maps(object: &[u8], forwards_pods: u32) -> anyhow::Result<Ebpf> {
    // As the agent does unless told otherwise: with 0 the verifier would never see what is done in a flood.
    let globals = Globals { flood_threshold: 1, forwards_pods, ..Globals::default() };
    let mut loader = EbpfLoader::new();
    globals.set(&mut loader);
    for map in MAPS.iter().filter(|map| map.max_entries > ENTRIES_MAX) {
        if map.map_type as u32 != MapType::RingBuf as u32 {
            loader.map_max_entries(map.name, ENTRIES_MAX);
        }
    }
    Ok(loader.load(object)?)
}

fn is_loaded(name: &str, program: &mut Program) -> bool {
    match load_program(program) {
        Ok(instructions) => {
            println!("{name} ok {instructions}");
            true
        }
        Err(error) => {
            let text = format!("{error:?}");
            let tail: String = text.chars().skip(text.chars().count().saturating_sub(LOG_BYTES)).collect();
            println!("{name} FAILED {tail}");
            false
        }
    }
}

/// Instructions verified; 0 where the kernel does not say (before Linux 5.16).
fn load_program(program: &mut Program) -> Result<u32, ProgramError> {
    match program {
        Program::SchedClassifier(program) => program.load()?,
        Program::CgroupSockAddr(program) => program.load()?,
        Program::Xdp(program) => program.load()?,
        _ => {}
    }
    Ok(program.info()?.verified_instruction_count().unwrap_or_default())
}
