//! Values below a directory that stands for the root: what is written, and what is not.

use super::*;

const DEFAULTS: Conntrack = Conntrack {
    max_per_core: 32_768,
    min: 131_072,
    tcp_established: Duration::from_secs(86_400),
    tcp_close_wait: Duration::from_secs(3600),
    tcp_be_liberal: false,
    udp: Duration::ZERO,
    udp_stream: Duration::ZERO,
};

/// A kernel with its usual values.
fn root(name: &str) -> PathBuf {
    let root = std::env::temp_dir().join(format!("lb-node-tuning-{}-{name}", std::process::id()));
    for (path, value) in [
        ("proc/sys/net/netfilter/nf_conntrack_max", "65536"),
        ("proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established", "432000"),
        ("proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait", "60"),
        ("proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal", "0"),
        ("proc/sys/net/netfilter/nf_conntrack_udp_timeout", "30"),
        ("proc/sys/net/netfilter/nf_conntrack_udp_timeout_stream", "120"),
        (HASHSIZE, "16384"),
        ("proc/self/oom_score_adj", "0"),
    ] {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{value}\n")).unwrap();
    }
    root
}

fn values(root: &Path) -> Vec<String> {
    let names = [
        "max",
        "tcp_timeout_established",
        "tcp_timeout_close_wait",
        "tcp_be_liberal",
        "udp_timeout",
        "udp_timeout_stream",
    ];
    let paths = names.map(|name| format!("proc/sys/net/netfilter/nf_conntrack_{name}"));
    let paths = paths.into_iter().chain([HASHSIZE.to_owned()]);
    paths.map(|path| fs::read_to_string(root.join(path)).unwrap().trim().to_owned()).collect()
}

#[test]
fn conntrack_max_scales_with_the_cpus_within_bounds() {
    // TestGetConntrackMax and TestGetConntrackMaxCapped (spec 12B), 12A 92.
    for (per_core, min, cpus, max) in [
        (0, 0, 4, 0),
        (0, 131_072, 4, 0),
        (10, 0, 4, 40),
        (10, 131_072, 4, 131_072),
        (32_768, 131_072, 2, 131_072),
        (32_768, 131_072, 8, 262_144),
        (32_768, 131_072, 32, 1_048_576),
        (32_768, 131_072, 128, 1_048_576),
        (32_768, 2_000_000, 128, 1_048_576),
        (u32::MAX, 1, u32::MAX, 1_048_576),
    ] {
        let conntrack = Conntrack { max_per_core: per_core, min, ..Conntrack::default() };
        assert_eq!(conntrack.max(cpus), max, "spec 7.20: {per_core} {min} {cpus}");
    }
}

#[test]
fn kube_proxys_defaults_are_written_where_they_differ() {
    let root = root("defaults");
    DEFAULTS.set(&root, 8).unwrap();
    assert_eq!(values(&root), ["262144", "86400", "3600", "0", "30", "120", "65536"], "spec 7.20 to 7.22");
}

#[test]
fn zero_leaves_every_value_alone() {
    let root = root("zero");
    let before = values(&root);
    Conntrack { min: 131_072, ..Conntrack::default() }.set(&root, 8).unwrap();
    assert_eq!(values(&root), before);
}

#[test]
fn what_is_asked_for_is_written_and_a_larger_table_stays() {
    let root = root("asked");
    fs::write(root.join(HASHSIZE), "1000000\n").unwrap();
    let asked = Conntrack {
        tcp_be_liberal: true,
        udp: Duration::from_secs(10),
        udp_stream: Duration::from_secs(20),
        ..DEFAULTS
    };
    asked.set(&root, 8).unwrap();
    assert_eq!(values(&root), ["262144", "86400", "3600", "1", "10", "20", "1000000"], "spec 7.21, 7.22");
}

#[test]
fn values_that_are_right_are_not_written() {
    let root = root("right");
    DEFAULTS.set(&root, 8).unwrap();
    let path = root.join("proc/sys/net/netfilter/nf_conntrack_max");
    let written = fs::metadata(&path).unwrap().modified().unwrap();
    let past = written - Duration::from_secs(3600);
    fs::File::open(&path).unwrap().set_modified(past).unwrap();
    DEFAULTS.set(&root, 8).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), past, "spec 7.23");
}

#[test]
fn without_connection_tracking_there_is_nothing_to_set() {
    let root = std::env::temp_dir().join(format!("lb-node-tuning-{}-none", std::process::id()));
    fs::create_dir_all(&root).unwrap();
    DEFAULTS.set(&root, 8).unwrap();
    assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
}

#[test]
fn the_oom_score_is_written() {
    let root = root("oom");
    set_oom_score(&root, -999).unwrap();
    assert_eq!(fs::read_to_string(root.join("proc/self/oom_score_adj")).unwrap(), "-999");
}

#[test]
fn lists_of_cpus_are_counted() {
    for (list, number) in
        [("0", Some(1)), ("0-3", Some(4)), ("0-3,8,10-11", Some(7)), ("", None), ("3-1", None)]
    {
        assert_eq!(count(list), number, "{list}");
    }
}
