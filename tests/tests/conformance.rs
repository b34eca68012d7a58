//! docs/conformance.md: no title and no number is missing, no row is empty, and every test it names exists.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

/// Below the test's own crate.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn page() -> Result<String> {
    fs::read_to_string(root().join("docs/conformance.md")).context("read docs/conformance.md")
}

/// The cells of every row of the tables in `text` that have as many columns, headers left out.
fn rows(text: &str) -> Vec<[String; 3]> {
    let lines = text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("|---"));
    let cells = lines.map(|line| {
        line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect::<Vec<_>>()
    });
    let rows = cells.filter_map(|cells| <[String; 3]>::try_from(cells).ok());
    rows.filter(|[first, ..]| first != "title" && first != "number").collect()
}

/// What stands between backticks.
fn references(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// The file a reference names, and the function in it.
fn resolve(reference: &str) -> Result<(PathBuf, Option<&str>)> {
    if let Some(script) = reference.strip_prefix("script ") {
        return Ok((root().join(format!("tests/testdata/control_plane/{script}.txt")), None));
    }
    let (file, function) = reference.split_once("::").with_context(|| format!("no test: {reference}"))?;
    let base = if file.contains('/') { root() } else { root().join("tests/tests") };
    Ok((base.join(file), Some(function)))
}

/// The text of a source file, or of all those in a folder.
fn source(path: &Path) -> Result<String> {
    let file = path.with_extension("rs");
    if file.is_file() || !path.is_dir() {
        return fs::read_to_string(&file).with_context(|| format!("read {}", file.display()));
    }
    let files = fs::read_dir(path)?.map(|entry| fs::read_to_string(entry?.path()));
    files.collect::<std::io::Result<Vec<_>>>().map(|texts| texts.concat()).context("read a folder of tests")
}

/// Fails unless the test is there and is run: marked as a test, or called by one.
fn check(reference: &str) -> Result<()> {
    let (path, function) = resolve(reference)?;
    let Some(function) = function else {
        ensure!(path.is_file(), "{reference}: no such script");
        return Ok(());
    };
    let text = source(&path)?;
    ensure!(
        text.contains(&format!("fn {function}(")) || text.contains(&format!("fn {function}<")),
        "{reference}: no such function"
    );
    let mentions = text.matches(function).count();
    let definition = text.find(&format!("fn {function}")).unwrap_or_default();
    let before: String = text[..definition].lines().rev().take(4).collect();
    ensure!(mentions > 1 || before.contains("test]"), "{reference}: nobody runs it");
    Ok(())
}

#[test]
fn every_test_that_is_named_exists_and_no_row_is_empty() -> Result<()> {
    let page = page()?;
    let mut faults = Vec::new();
    for [first, second, third] in rows(&page) {
        let named: Vec<&str> = references(&second)
            .into_iter()
            .chain(references(&third))
            .filter(|name| name.contains("::") || name.starts_with("script "))
            .collect();
        let reason = ["not a proxy's: ", "not applicable: ", "not covered: "];
        let says_why = [&second, &third]
            .iter()
            .any(|cell| reason.iter().any(|start| cell.starts_with(start) && cell.len() > start.len() + 8));
        if named.is_empty() && !says_why {
            faults.push(format!("{first}: neither a test nor a reason"));
        }
        if second.is_empty() || third.is_empty() {
            faults.push(format!("{first}: an empty cell"));
        }
        faults.extend(
            named.into_iter().filter_map(|name| check(name).err()).map(|fault| format!("{first}: {fault:#}")),
        );
    }
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

/// Titles of each file of `test/e2e` as Kubernetes 1.36 has them.
const TITLES: [(&str, usize); 23] = [
    ("network/service.go", 51),
    ("network/conntrack.go", 7),
    ("network/dual_stack.go", 23),
    ("network/endpointslice.go", 5),
    ("network/loadbalancer.go", 17),
    ("network/topology_hints.go", 1),
    ("network/traffic_distribution.go", 6),
    ("network/kube_proxy.go", 2),
    ("network/networking.go", 27),
    ("network/hostport.go", 1),
    ("network/no_snat.go", 1),
    ("network/service_latency.go", 1),
    ("network/service_cidrs.go", 3),
    ("network/pod_lifecycle.go", 3),
    ("network/endpoints.go", 3),
    ("network/endpointslicemirroring.go", 2),
    ("network/proxy.go", 5),
    ("network/dns.go", 17),
    ("network/dns_configmap.go", 3),
    ("network/dns_scale_records.go", 1),
    ("network/ingress.go", 1),
    ("network/ingressclass.go", 5),
    ("common/network/networking.go", 6),
];

#[test]
fn no_title_is_missing() -> Result<()> {
    let page = page()?;
    for (file, count) in TITLES {
        let heading = format!("### {file} ({count})\n");
        let (_, section) = page.split_once(&heading).with_context(|| format!("no section {heading:?}"))?;
        let section = section.split("\n#").next().unwrap_or_default();
        let titles: BTreeSet<String> = rows(section).into_iter().map(|[title, ..]| title).collect();
        ensure!(titles.len() == count, "{file}: {} titles, not {count}", titles.len());
    }
    Ok(())
}

#[test]
fn no_edge_case_is_missing() -> Result<()> {
    let page = page()?;
    let (_, edges) = page.split_once("## Edge cases").context("no section of edge cases")?;
    let numbers: Vec<String> = rows(edges).into_iter().map(|[number, ..]| number).collect();
    let expected: Vec<String> = (1..=100).map(|number| number.to_string()).collect();
    ensure!(numbers == expected, "{numbers:?}");
    Ok(())
}
