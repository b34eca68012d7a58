//! What the measurements (`cargo xtask bench`) have in common: a [`row::Row`] per figure, and how rows are shown.

pub mod plot;
pub mod row;

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use comfy_table::{Table, presets::ASCII_MARKDOWN};

use crate::bench::row::Row;

/// Where the figures go besides stdout.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Output {
    /// Write the rows as JSON too
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Draw the rows as SVG too, into this directory
    #[arg(long, value_name = "DIR")]
    pub svg: Option<PathBuf>,
}

impl Output {
    /// Prints the rows as a Markdown table and writes them where they are wanted besides; an error if a target was missed.
    pub fn publish(&self, rows: &[Row]) -> Result<()> {
        println!("{}", table(rows));
        if let Some(path) = &self.json {
            let text = serde_json::to_string_pretty(rows)?;
            fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
        }
        if let Some(dir) = &self.svg {
            plot::write(dir, rows)?;
        }
        let missed: Vec<&str> =
            rows.iter().filter(|row| row.met == Some(false)).map(|row| row.case.as_str()).collect();
        ensure!(missed.is_empty(), "targets missed: {}", missed.join("; "));
        Ok(())
    }
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_preset(ASCII_MARKDOWN);
    table.set_header(["case", "unit", "median", "min", "max", "target", ""]);
    for row in rows {
        let met = row.met.map_or("", |met| if met { "met" } else { "MISSED" });
        let target = row.target.map(number).unwrap_or_default();
        let figures = [row.median, row.min, row.max].map(number);
        let [median, min, max] = figures;
        table.add_row([row.case.clone(), row.unit.to_owned(), median, min, max, target, met.to_owned()]);
    }
    table
}

/// At least three digits that mean something.
fn number(figure: f64) -> String {
    let decimals = if figure.abs() < 100.0 { 2 } else { usize::from(figure.abs() < 1000.0) };
    format!("{figure:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::{
        row::Target::{AtLeast, AtMost, NotSet},
        *,
    };

    #[test]
    fn a_missed_target_is_an_error_that_names_the_case() {
        let row = |case: &str, target| Row::new("suite", case, "ms", vec![2.0], target);
        let output = Output::default();
        assert!(output.publish(&[row("a", AtMost(2.0)), row("b", AtLeast(2.0)), row("c", NotSet)]).is_ok());
        let error = output.publish(&[row("fast", AtMost(2.0)), row("slow", AtMost(1.9))]).unwrap_err();
        assert_eq!(error.to_string(), "targets missed: slow");
    }

    #[test]
    fn the_table_is_markdown_with_a_line_per_row() {
        let rows = [Row::new("suite", "sync", "ms", vec![1738.0, 2.5, 0.981], AtMost(2.0))];
        let text = table(&rows).to_string();
        let words: Vec<&str> = text.lines().next_back().unwrap().split('|').map(str::trim).collect();
        assert_eq!(words, ["", "sync", "ms", "2.50", "0.98", "1738", "2.00", "MISSED", ""]);
    }
}
