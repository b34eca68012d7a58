//! Loads every program of the BPF object into the running kernel and prints, a line each, its name and `ok` with the
//! instructions verified, or the end of the verifier's log. The init of the old kernel's VM runs it ([`lb_tests::vm`]).

use std::process::ExitCode;

use aya::{
    EbpfLoader,
    maps::MapType,
    programs::{Program, ProgramError},
};
use lb_common::{maps::MAPS, settings};

/// Enough to load; a small VM has no room for more.
const ENTRIES_MAX: u32 = 1024;
/// Bytes of the verifier's log worth printing: the end says why.
const LOG_BYTES: usize = 1500;

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
    let mut loader = EbpfLoader::new();
    // As the agent does unless told otherwise: with 0 the verifier would never see what is done in a flood.
    loader.override_global(settings::FLOOD_THRESHOLD, &1_u32, true);
    for map in MAPS.iter().filter(|map| map.max_entries > ENTRIES_MAX) {
        if map.map_type as u32 != MapType::RingBuf as u32 {
            loader.map_max_entries(map.name, ENTRIES_MAX);
        }
    }
    let mut ebpf = loader.load(lb_agent::datapath::OBJECT)?;
    let mut all = true;
    for (name, program) in ebpf.programs_mut() {
        match load_program(program) {
            Ok(instructions) => println!("{name} ok {instructions}"),
            Err(error) => {
                let text = format!("{error:?}");
                let tail: String =
                    text.chars().skip(text.chars().count().saturating_sub(LOG_BYTES)).collect();
                println!("{name} FAILED {tail}");
                all = false;
            }
        }
    }
    Ok(all)
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
