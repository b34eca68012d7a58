//! The order of samples, and the rows they become.

use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use lb_tests::{
    bench::row::{Row, Target},
    sweep,
};

use crate::{
    lane::Lane,
    load::Measure,
    path::Path,
    services::{manifests, service_ports},
};

/// How much is measured.
pub(crate) struct Plan {
    /// Numbers of Services, unless others are asked for.
    pub(crate) sizes: &'static [u16],
    /// Samples of each figure.
    rounds: usize,
    /// Of a sample.
    duration: Duration,
    /// Whether the ratios mean anything.
    has_targets: bool,
}

/// What is published.
pub(crate) const FULL: Plan =
    Plan { sizes: &[1, 1_000, 10_000], rounds: 25, duration: Duration::from_millis(50), has_targets: true };
/// Only shows that every way serves.
pub(crate) const QUICK: Plan =
    Plan { sizes: &[1, 50], rounds: 2, duration: Duration::from_millis(20), has_targets: false };

/// Texts of which the names of what is measured contain one; none: everything is.
pub(crate) struct Selection {
    /// Of ways.
    pub(crate) paths: Vec<String>,
    /// Of measures.
    pub(crate) measures: Vec<String>,
}

/// True if `name` is selected by `texts`.
fn is_selected(name: &str, texts: &[String]) -> bool {
    texts.is_empty() || texts.iter().any(|text| name.contains(text))
}

/// Samples by measure, and by path and number of Services where they are ratios.
#[derive(Default)]
struct Samples {
    direct: BTreeMap<usize, Vec<f64>>,
    ratios: BTreeMap<(usize, Path, u16), Vec<f64>>,
}

/// Measures everything.
pub(crate) fn measure(plan: &Plan, sizes: &[u16], selection: &Selection, object: &[u8]) -> Result<Vec<Row>> {
    let mut samples = Samples::default();
    let directory = Directory::new()?;
    let mut direct = Lane::start(Path::Direct, &[], &directory.0, object)?;
    for (number, &services) in sizes.iter().enumerate() {
        eprintln!("{services} services");
        let list = service_ports(services.into());
        directory.write(&manifests(&list))?;
        let start =
            |path| Lane::start(path, &list, &directory.0, object).with_context(|| format!("{path:?}"));
        let paths = Path::COMPARED.into_iter().filter(|path| number == 0 || !path.is_direct());
        let paths = paths.filter(|path| is_selected(path.name(), &selection.paths));
        let mut lanes: Vec<Lane> = paths.map(start).collect::<Result<_>>()?;
        for measure in 0..Measure::ALL.len() {
            if !is_selected(Measure::ALL[measure].name(), &selection.measures) {
                continue;
            }
            for round in 0..=plan.rounds {
                // Round 0 fills caches and neighbour tables.
                let rates = one_round(&mut direct, &mut lanes, Measure::ALL[measure], plan.duration)?;
                if round > 0 {
                    samples.add((measure, services), &lanes, &rates);
                }
            }
        }
    }
    Ok(rows(plan, samples))
}

/// Rates of the direct way and the others in turn; the direct way begins and ends.
fn one_round(
    direct: &mut Lane,
    lanes: &mut [Lane],
    measure: Measure,
    duration: Duration,
) -> Result<Vec<f64>> {
    let mut rates = vec![direct.rate(measure, duration)?];
    for lane in lanes {
        let path = lane.path();
        rates.push(lane.rate(measure, duration).with_context(|| format!("{path:?}, {measure:?}"))?);
        rates.push(direct.rate(measure, duration)?);
    }
    Ok(rates)
}

impl Samples {
    fn add(&mut self, (measure, services): (usize, u16), lanes: &[Lane], rates: &[f64]) {
        self.direct.entry(measure).or_default().extend(rates.iter().step_by(2));
        for (lane, ratio) in lanes.iter().zip(ratios(rates)) {
            self.ratios.entry((measure, lane.path(), services)).or_default().push(ratio);
        }
    }
}

/// Each rate at an odd place to the mean of its neighbours.
fn ratios(rates: &[f64]) -> Vec<f64> {
    rates.windows(3).step_by(2).map(|three| three[1] * 2.0 / (three[0] + three[2])).collect()
}

fn rows(plan: &Plan, samples: Samples) -> Vec<Row> {
    let row = |case, unit, samples, target| Row::new("sockets", case, unit, samples, target);
    let mut rows = Vec::new();
    for (measure, rates) in samples.direct {
        let measure = Measure::ALL[measure];
        let case = format!("{}, {}", measure.name(), Path::Direct.name());
        rows.push(row(case, measure.unit(), rates, Target::NotSet));
    }
    for ((measure, path, services), ratios) in samples.ratios {
        let measure = Measure::ALL[measure];
        let mut case = format!("{}, {}", measure.name(), path.name());
        if !path.is_direct() {
            case += &format!(", services: {services}");
        }
        let target = if plan.has_targets { path.target(measure) } else { Target::NotSet };
        rows.push(row(case, "of direct", ratios, target));
    }
    rows
}

/// The manifests that the agents read.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(sweep::unique_prefix()).join("manifests");
        fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(Self(path))
    }

    /// No agent runs yet that could see half of it.
    fn write(&self, text: &str) -> Result<()> {
        let path = self.0.join("services.yaml");
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What remains is removed by the next sweep.
        drop(self.0.parent().map(fs::remove_dir_all));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_compared_with_the_mean_of_its_neighbours() {
        assert_eq!(ratios(&[10.0, 9.0, 8.0, 12.0, 16.0]), [1.0, 1.0]);
        assert!(ratios(&[10.0]).is_empty());
    }
}
