//! Rows as bar charts. Rows whose cases begin alike, up to the first comma, and have one unit, share a chart; a figure
//! alone gets none.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result, anyhow};
use plotters::{
    coord::{cartesian::Cartesian2d, types::RangedCoordf64},
    prelude::{
        BLACK, ChartBuilder, ChartContext, Color as _, IntoDrawingArea as _, PathElement, RED, RGBColor,
        Rectangle, SVGBackend, Text, WHITE,
    },
    style::IntoFont as _,
};

use crate::bench::row::Row;

const WIDTH: u32 = 900;
/// Height of a bar with its label.
const ROW_HEIGHT: u32 = 40;
/// Title and axis.
const FRAME_HEIGHT: u32 = 100;
const BAR: RGBColor = RGBColor(120, 160, 205);

type Chart<'a> = ChartContext<'a, SVGBackend<'a>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

/// Writes the charts into a directory, which is made if need be; each is named after suite and case.
pub fn write(dir: &Path, rows: &[Row]) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    let mut charts: BTreeMap<(&str, &str), Vec<(&str, &Row)>> = BTreeMap::new();
    for row in rows {
        let (subject, label) = row.case.split_once(", ").unwrap_or((&row.case, ""));
        charts.entry((subject, row.unit)).or_default().push((label, row));
    }
    for ((subject, unit), bars) in charts.into_iter().filter(|(_, bars)| bars.len() > 1) {
        let text = draw(subject, unit, &bars).map_err(|error| anyhow!("draw {subject}: {error}"))?;
        let path = dir.join(format!("{}-{}.svg", bars[0].1.suite, slug(subject)));
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// Lower case letters and digits, joined by `-`.
fn slug(subject: &str) -> String {
    let words = subject.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_lowercase).collect::<Vec<_>>().join("-")
}

fn draw(subject: &str, unit: &str, bars: &[(&str, &Row)]) -> Result<String, Box<dyn std::error::Error>> {
    let count = u32::try_from(bars.len())?;
    let mut text = String::new();
    let root =
        SVGBackend::with_string(&mut text, (WIDTH, FRAME_HEIGHT + count * ROW_HEIGHT)).into_drawing_area();
    root.fill(&WHITE)?;
    let widest = bars.iter().flat_map(|(_, row)| [row.max, row.target.unwrap_or(0.0)]).fold(0.0, f64::max);
    let mut chart = ChartBuilder::on(&root)
        .caption(subject, ("sans-serif", 20))
        .margin(10)
        .x_label_area_size(45)
        .build_cartesian_2d(0.0..widest * 1.02, 0.0..f64::from(count))?;
    chart.configure_mesh().disable_y_mesh().disable_y_axis().x_max_light_lines(1).x_desc(unit).draw()?;
    for (place, (label, row)) in bars.iter().rev().enumerate() {
        draw_bar(&mut chart, place as f64, label, row)?;
    }
    root.present()?;
    drop((chart, root));
    Ok(text)
}

/// The bar is the median, the line on it reaches from the smallest to the largest sample, the stroke across is the
/// target.
fn draw_bar(
    chart: &mut Chart<'_>,
    place: f64,
    label: &str,
    row: &Row,
) -> Result<(), Box<dyn std::error::Error>> {
    let (bottom, middle, top) = (place + 0.1, place + 0.3, place + 0.5);
    let bar = Rectangle::new([(0.0, bottom), (row.median, top)], BAR.filled());
    chart.draw_series([bar])?;
    let range = PathElement::new([(row.min, middle), (row.max, middle)], BLACK);
    let target =
        row.target.map(|target| PathElement::new([(target, bottom), (target, top)], RED.stroke_width(2)));
    chart.draw_series(std::iter::once(range).chain(target))?;
    let figures = [row.median, row.min, row.max].map(super::number);
    let [median, min, max] = figures;
    let label = format!("{label}: {median} ({min} to {max})");
    chart.draw_series([Text::new(label, (0.0, place + 0.85), ("sans-serif", 13).into_font())])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::row::Target;

    #[test]
    fn rows_of_one_subject_share_a_chart() {
        let row = |case: &str, unit| Row::new("control", case, unit, vec![1.0, 2.0], Target::AtMost(3.0));
        let rows = [
            row("First sync, 10 services", "ms"),
            row("First sync, 1000 services", "ms"),
            row("First sync, alone", "s"),
        ];
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &rows).unwrap();
        let names: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["control-first-sync.svg"]);
        let text = fs::read_to_string(dir.path().join(&names[0])).unwrap();
        assert!(text.starts_with("<svg") && text.trim_end().ends_with("</svg>"), "{text}");
        for label in ["10 services: 2.00 (1.00 to 2.00)", "1000 services"] {
            assert!(text.contains(label), "{label} is missing in {text}");
        }
        assert!(!text.contains("alone"));
    }
}
