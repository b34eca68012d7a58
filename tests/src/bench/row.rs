//! One figure of a measurement.

use serde::Serialize;

/// What a median is compared with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// Smaller is better.
    AtMost(f64),
    /// Larger is better.
    AtLeast(f64),
    /// The figure is only shown.
    NotSet,
}

/// One figure, as it stands in the JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// `control`, `packets` or `sockets`.
    pub suite: &'static str,
    /// What was measured, in words: first what, then how, separated by `, `. What rows have in common comes first.
    pub case: String,
    /// Of `median`, `min`, `max` and `target`.
    pub unit: &'static str,
    /// The middle sample; of two, the larger.
    pub median: f64,
    /// The smallest sample.
    pub min: f64,
    /// The largest sample.
    pub max: f64,
    /// `null`: none is set.
    pub target: Option<f64>,
    /// Whether the median meets the target; `null` without one.
    pub met: Option<bool>,
}

impl Row {
    /// From the samples, in any order; without samples every figure is NaN (`null` in JSON).
    pub fn new(
        suite: &'static str,
        case: impl Into<String>,
        unit: &'static str,
        mut samples: Vec<f64>,
        target: Target,
    ) -> Self {
        samples.sort_unstable_by(f64::total_cmp);
        let at = |index: usize| samples.get(index).copied().unwrap_or(f64::NAN);
        let (median, min, max) = (at(samples.len() / 2), at(0), at(samples.len().saturating_sub(1)));
        let (target, met) = match target {
            Target::AtMost(limit) => (Some(limit), Some(median <= limit)),
            Target::AtLeast(limit) => (Some(limit), Some(median >= limit)),
            Target::NotSet => (None, None),
        };
        Self { suite, case: case.into(), unit, median, min, max, target, met }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_decides_whether_a_target_is_met() {
        let row = |target| Row::new("control", "sync", "ms", vec![9.0, 1.0, 2.0], target);
        assert_eq!(
            (row(Target::NotSet).median, row(Target::NotSet).min, row(Target::NotSet).max),
            (2.0, 1.0, 9.0)
        );
        assert_eq!(row(Target::AtMost(2.0)).met, Some(true));
        assert_eq!(row(Target::AtLeast(2.1)).met, Some(false));
        assert_eq!(row(Target::NotSet).met, None);
    }

    #[test]
    fn the_json_has_the_fields_that_tools_read() {
        let row = Row::new("sockets", "direct", "1/s", vec![1.0], Target::NotSet);
        let json = serde_json::json!({
            "suite": "sockets", "case": "direct", "unit": "1/s",
            "median": 1.0, "min": 1.0, "max": 1.0, "target": null, "met": null,
        });
        assert_eq!(serde_json::to_value(row).unwrap(), json);
    }
}
