//! Which programs are in a BPF object, and how big are they? Reads the ELF file; printed by `build-ebpf`.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, SectionKind, SymbolKind};

/// One function in the object.
#[derive(Debug, PartialEq, Eq)]
struct Function {
    name: String,
    /// Says a program's type and hook.
    section: String,
    bytes: u64,
}

/// A BPF instruction is 8 bytes; a 64-bit load counts as two.
const INSTRUCTION_BYTES: u64 = 8;

/// Where functions lie that programs call; whatever else holds code is a program's own section.
const SHARED_SECTION: &str = ".text";

/// Prints a line per program, one for all functions they share, and the sum.
pub fn print_programs(path: &Path) -> Result<()> {
    let data = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let functions = functions(&data).with_context(|| format!("parse {}", path.display()))?;
    let (shared, programs): (Vec<_>, Vec<_>) =
        functions.into_iter().partition(|function| function.section == SHARED_SECTION);
    ensure!(!programs.is_empty(), "{} holds no program", path.display());
    let print_row = |name: &str, section: &str, bytes: u64| {
        println!("{name:<28} {section:<22} {:>12} {bytes:>10}", bytes / INSTRUCTION_BYTES);
    };
    println!("{:<28} {:<22} {:>12} {:>10}", "program", "section", "instructions", "bytes");
    for program in &programs {
        print_row(&program.name, &program.section, program.bytes);
    }
    let sum = |functions: &[Function]| functions.iter().map(|function| function.bytes).sum::<u64>();
    print_row(&format!("{} functions they call", shared.len()), SHARED_SECTION, sum(&shared));
    print_row(&format!("{} programs in all", programs.len()), "", sum(&programs) + sum(&shared));
    Ok(())
}

fn functions(data: &[u8]) -> Result<Vec<Function>> {
    let file = object::File::parse(data)?;
    let mut functions = Vec::new();
    for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() > 0) {
        let Some(index) = symbol.section_index() else { continue };
        let section = file.section_by_index(index)?;
        if section.kind() == SectionKind::Text {
            let (name, section) = (symbol.name()?.to_owned(), section.name()?.to_owned());
            functions.push(Function { name, section, bytes: symbol.size() });
        }
    }
    functions.sort_by(|a, b| (&a.section, &a.name).cmp(&(&b.section, &b.name)));
    Ok(functions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_object_is_refused() {
        assert!(functions(b"not an ELF file").is_err());
    }
}
