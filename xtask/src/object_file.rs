//! Which programs are in a BPF object, and how big are they? Reads the ELF file; printed by `build-ebpf`.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, SectionKind, SymbolKind};

/// One function in the object.
#[derive(Debug, PartialEq, Eq)]
struct Program {
    name: String,
    /// Says the program's type and hook; `.text` holds functions the programs call.
    section: String,
    bytes: u64,
}

/// A BPF instruction is 8 bytes; a 64-bit load counts as two.
const INSTRUCTION_BYTES: u64 = 8;

/// Prints a line per program, and the sum.
pub fn print_programs(path: &Path) -> Result<()> {
    let data = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let programs = programs(&data).with_context(|| format!("parse {}", path.display()))?;
    ensure!(!programs.is_empty(), "{} holds no program", path.display());
    println!("{:<28} {:<22} {:>12} {:>10}", "program", "section", "instructions", "bytes");
    for program in &programs {
        let instructions = program.bytes / INSTRUCTION_BYTES;
        println!("{:<28} {:<22} {instructions:>12} {:>10}", program.name, program.section, program.bytes);
    }
    let bytes: u64 = programs.iter().map(|program| program.bytes).sum();
    println!("{:<51} {:>12} {bytes:>10}", format!("{} programs", programs.len()), bytes / INSTRUCTION_BYTES);
    Ok(())
}

fn programs(data: &[u8]) -> Result<Vec<Program>> {
    let file = object::File::parse(data)?;
    let mut programs = Vec::new();
    for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() > 0) {
        let Some(index) = symbol.section_index() else { continue };
        let section = file.section_by_index(index)?;
        if section.kind() == SectionKind::Text {
            let (name, section) = (symbol.name()?.to_owned(), section.name()?.to_owned());
            programs.push(Program { name, section, bytes: symbol.size() });
        }
    }
    programs.sort_by(|a, b| (&a.section, &a.name).cmp(&(&b.section, &b.name)));
    Ok(programs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_object_is_refused() {
        assert!(programs(b"not an ELF file").is_err());
    }
}
