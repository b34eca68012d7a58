//! The flags of `run`, from the command line and from files.
//!
//! A file's field is a flag's name in camelCase (`--gc-period` is `gcPeriod`), and its value goes through the flag's
//! own parser: there is no second list and no second way to check. What must stay true: a flag that is given on the
//! command line, or by its environment variable, wins over every file, and the agent's own file over kube-proxy's.

use std::{ffi::OsString, fmt, fs, path::Path};

use anyhow::Context as _;
use clap::{Arg, ArgAction, ArgMatches, CommandFactory as _, FromArgMatches as _, parser::ValueSource};
use serde::{
    Deserializer,
    de::{self, DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_yaml_ng::{Mapping, Value};

use super::{Cli, Command};
use crate::{kube_proxy, setting::Setting};

const API_VERSION: &str = "lb-ebpf.io/v1alpha1";
const KIND: &str = "AgentConfiguration";
/// What can be said on the command line only: where the files are, and what to do with them.
const NOT_IN_A_FILE: [&str; 5] = ["config", "kube-proxy-config", "write-config-to", "init-only", "help"];

/// The command line with what its files add.
pub(super) struct Parsed {
    pub cli: Cli,
    pub matches: ArgMatches,
    /// What of kube-proxy's file is not taken as it is: for the log.
    pub notes: Vec<String>,
}

/// Reads the files that the command line names. Errors of the command line itself end the process, as clap does.
pub(super) fn parse(line: Vec<OsString>) -> anyhow::Result<Parsed> {
    let matches = Cli::command().get_matches_from(&line);
    let (cli, mut notes) = (from_matches(&matches), Vec::new());
    let (Command::Run(args), Some(given)) = (&cli.command, matches.subcommand_matches("run")) else {
        return Ok(Parsed { cli, matches, notes });
    };
    let mut settings = Vec::new();
    if let Some(path) = &args.kube_proxy_config {
        settings.extend(checked(path, kube_proxy_settings(path, &mut notes)?)?);
    }
    if let Some(path) = &args.config {
        let own = checked(path, read(path)?)?;
        settings.retain(|setting| own.iter().all(|own| own.flag != setting.flag));
        settings.extend(own);
    }
    settings.retain(|setting| !is_given(given, &setting.flag));
    let matches = Cli::command().get_matches_from(merge(line, &settings));
    Ok(Parsed { cli: from_matches(&matches), matches, notes })
}

fn from_matches(matches: &ArgMatches) -> Cli {
    Cli::from_arg_matches(matches).unwrap_or_else(|error| error.exit())
}

fn is_given(run: &ArgMatches, flag: &str) -> bool {
    let command = run_command();
    let arg = command.get_arguments().find(|arg| arg.get_long() == Some(flag));
    let source = arg.and_then(|arg| run.value_source(arg.get_id().as_str()));
    matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable))
}

fn run_command() -> clap::Command {
    let mut cli = Cli::command();
    cli.build();
    cli.find_subcommand("run").cloned().unwrap_or_default()
}

/// `settings` on their own, if `run` accepts them; a value it refuses is the file's fault and not the command line's.
fn checked(path: &Path, settings: Vec<Setting>) -> anyhow::Result<Vec<Setting>> {
    let line = ["lb-agent", "run"].map(OsString::from).to_vec();
    match Cli::command().try_get_matches_from(merge(line, &settings)) {
        Ok(_) => Ok(settings),
        Err(error) => {
            let text = error.to_string();
            let reason = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
            anyhow::bail!("{}: {reason}", path.display())
        }
    }
}

/// `line` with `settings` between `run` and the flags that follow it.
fn merge(mut line: Vec<OsString>, settings: &[Setting]) -> Vec<OsString> {
    let command = run_command();
    let flags = settings.iter().flat_map(|setting| arguments(&command, setting));
    let at = line.len().min(2);
    line.splice(at..at, flags);
    line
}

/// A setting as the flag's arguments.
fn arguments(command: &clap::Command, setting: &Setting) -> Vec<OsString> {
    let Setting { flag, values } = setting;
    let arg = command.get_arguments().find(|arg| arg.get_long() == Some(flag));
    let is_repeated = arg.is_some_and(|arg| is_list(arg) && arg.get_value_delimiter().is_none());
    if arg.is_some_and(|arg| matches!(arg.get_action(), ArgAction::SetTrue)) {
        return values.iter().filter(|value| *value == "true").map(|_| format!("--{flag}").into()).collect();
    }
    match is_repeated {
        true => values.iter().map(|value| format!("--{flag}={value}").into()).collect(),
        false => vec![format!("--{flag}={}", values.join(",")).into()],
    }
}

fn is_list(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Append)
}

/// What kube-proxy's file says, in our flags; what it says that is not taken as it is goes to `notes`.
fn kube_proxy_settings(path: &Path, notes: &mut Vec<String>) -> anyhow::Result<Vec<Setting>> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let migration = kube_proxy::migrate(&text).with_context(|| path.display().to_string())?;
    let refused: Vec<String> = migration.refused().map(ToString::to_string).collect();
    anyhow::ensure!(refused.is_empty(), "{}:\n  {}", path.display(), refused.join("\n  "));
    notes.extend(migration.warnings.iter().cloned());
    notes.extend(migration.not_kept().map(ToString::to_string));
    Ok(migration.settings())
}

/// The settings of the agent's own file.
fn read(path: &Path) -> anyhow::Result<Vec<Setting>> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    parse_file(&text).with_context(|| path.display().to_string())
}

fn parse_file(text: &str) -> Result<Vec<Setting>, serde_yaml_ng::Error> {
    let command = run_command();
    let flags: Vec<&str> = flags(&command).filter_map(Arg::get_long).collect();
    serde_yaml_ng::Deserializer::from_str(text).deserialize_map(File { flags: &flags })
}

/// The flags a file may set.
fn flags(command: &clap::Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|arg| arg.get_long().is_some_and(|flag| !NOT_IN_A_FILE.contains(&flag)))
}

/// `gc-period` → `gcPeriod`.
fn field(flag: &str) -> String {
    let mut words = flag.split('-');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |name, word| {
        let (head, tail) = word.split_at(word.len().min(1));
        name + &head.to_uppercase() + tail
    })
}

/// The whole file.
struct File<'a> {
    flags: &'a [&'a str],
}

impl<'de> Visitor<'de> for File<'_> {
    type Value = Vec<Setting>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the fields of an {KIND}")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut settings, mut seen): (Vec<Setting>, Vec<String>) = (Vec::new(), Vec::new());
        while let Some(name) = map.next_key::<String>()? {
            let flag = self.flags.iter().find(|flag| field(flag) == name);
            let entry = map.next_value_seed(Entry {
                name: &name,
                is_known: flag.is_some() || ["apiVersion", "kind"].contains(&name.as_str()),
                is_duplicate: seen.contains(&name),
            })?;
            match (flag, name.as_str()) {
                (Some(flag), _) => {
                    settings.extend(entry.map(|values| Setting { flag: (*flag).to_owned(), values }));
                }
                (None, "apiVersion") => expect::<A::Error>("apiVersion", entry, API_VERSION)?,
                (None, _) => expect::<A::Error>("kind", entry, KIND)?,
            }
            seen.push(name);
        }
        for name in ["apiVersion", "kind"] {
            if !seen.iter().any(|seen| seen == name) {
                return Err(de::Error::missing_field(if name == "kind" { "kind" } else { "apiVersion" }));
            }
        }
        Ok(settings)
    }
}

fn expect<E: de::Error>(name: &str, found: Option<Vec<String>>, expected: &str) -> Result<(), E> {
    let found = found.unwrap_or_default().join(",");
    if found == expected { Ok(()) } else { Err(E::custom(format!("{name} is {found:?}, not {expected:?}"))) }
}

/// The value of one field. Faults of the name are found here too, where the parser still knows the line.
#[derive(Clone, Copy)]
struct Entry<'a> {
    name: &'a str,
    is_known: bool,
    is_duplicate: bool,
}

impl Entry<'_> {
    fn check<E: de::Error>(self) -> Result<(), E> {
        match (self.is_known, self.is_duplicate) {
            (false, _) => Err(E::custom(format!("unknown field {:?}", self.name))),
            (true, true) => Err(E::custom(format!("field {:?} is there twice", self.name))),
            (true, false) => Ok(()),
        }
    }

    fn one<E: de::Error>(self, value: impl fmt::Display) -> Result<Option<Vec<String>>, E> {
        self.check().map(|()| Some(vec![value.to_string()]))
    }
}

impl<'de> DeserializeSeed<'de> for Entry<'_> {
    type Value = Option<Vec<String>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Entry<'_> {
    type Value = Option<Vec<String>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "for {:?} a string, a number, true, false, or a list of them", self.name)
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        self.check().map(|()| None)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Self::Value, E> {
        self.one(value)
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Self::Value, E> {
        self.one(value)
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Self::Value, E> {
        self.one(value)
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Self::Value, E> {
        self.one(value)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        self.check()?;
        let mut values = Vec::new();
        while let Some(value) = seq.next_element_seed(self)? {
            values.extend(value.unwrap_or_default());
        }
        Ok(Some(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        self.check()?;
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Err(de::Error::invalid_type(de::Unexpected::Map, &self))
    }
}

/// The flags that are in force, as a file that `--config` reads.
pub(super) fn render(run: &ArgMatches) -> anyhow::Result<String> {
    let mut file = Mapping::new();
    file.insert("apiVersion".into(), API_VERSION.into());
    file.insert("kind".into(), KIND.into());
    for arg in flags(&run_command()) {
        let texts = run.get_raw(arg.get_id().as_str()).into_iter().flatten();
        let mut values: Vec<Value> = texts.map(|text| scalar(&text.to_string_lossy())).collect();
        let name = field(arg.get_long().unwrap_or_default());
        match (is_list(arg), values.pop()) {
            (false, Some(value)) => drop(file.insert(name.into(), value)),
            (true, Some(last)) => {
                values.push(last);
                file.insert(name.into(), Value::Sequence(values));
            }
            (_, None) => {}
        }
    }
    Ok(serde_yaml_ng::to_string(&file)?)
}

/// A number or a truth value where the text is exactly its spelling, else the text.
fn scalar(text: &str) -> Value {
    match (text.parse::<i64>(), text.parse::<bool>()) {
        (Ok(number), _) if number.to_string() == text => number.into(),
        (_, Ok(truth)) => truth.into(),
        _ => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    const HEAD: &str = "apiVersion: lb-ebpf.io/v1alpha1\nkind: AgentConfiguration\n";

    fn file(dir: &Path, name: &str, text: &str) -> PathBuf {
        let path = dir.join(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn temp() -> PathBuf {
        let name = std::thread::current().name().unwrap().replace(':', "_");
        let dir = std::env::temp_dir().join(format!("lb-settings-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    fn run(line: &[&str]) -> anyhow::Result<String> {
        let line = ["lb-agent", "run"].iter().chain(line).map(OsString::from).collect();
        render(parse(line)?.matches.subcommand_matches("run").unwrap())
    }

    fn lines(text: &str, wanted: &[&str]) {
        for line in wanted {
            assert!(text.lines().any(|found| found == *line), "{line:?} is not in\n{text}");
        }
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let path = file(
            &temp(),
            "config.yaml",
            &format!(
                "{HEAD}nodeName: from-file\ngcPeriod: 7\nuplink: [eth*, bond0]\nexternalIpCidrs:\n- 192.0.2.0/24\n- 2001:db8::/32\nsocketLb: false\nnodeportAddresses: [10.0.0.0/8, 192.168.0.0/16]\noverlay:\n"
            ),
        );
        let text =
            run(&["--config", path.to_str().unwrap(), "--gc-period", "9", "--workload", "cali*"]).unwrap();
        lines(
            &text,
            &[
                "nodeName: from-file",
                "gcPeriod: 9",
                "- eth*",
                "- bond0",
                "- cali*",
                "- 192.0.2.0/24",
                "- 2001:db8::/32",
                "socketLb: false",
                "nodeportAddresses: 10.0.0.0/8,192.168.0.0/16",
                "minSyncPeriod: 5",
            ],
        );
        assert!(!text.contains("overlay"), "{text}");
    }

    #[test]
    fn what_is_written_reads_back_as_the_same() {
        let dir = temp();
        let first =
            run(&["--node-name", "007", "--uplink", "a", "--uplink", "b", "--snat-ports", "2000-3000"])
                .unwrap();
        let path = file(&dir, "config.yaml", &first);
        assert_eq!(run(&["--config", path.to_str().unwrap()]).unwrap(), first);
    }

    #[test]
    fn every_flag_has_a_field() {
        let command = run_command();
        for arg in flags(&command) {
            let (flag, value) = (arg.get_long().unwrap(), "1");
            let parsed = parse_file(&format!("{HEAD}{}: {value}\n", field(flag))).unwrap();
            assert_eq!(parsed, [Setting::new(flag, value)]);
        }
    }

    #[test]
    fn every_flag_that_kube_proxys_file_may_become_is_one_of_run() {
        let command = run_command();
        let known: Vec<_> = flags(&command).filter_map(Arg::get_long).collect();
        for field in kube_proxy::fields() {
            assert!(field.flags.iter().all(|flag| known.contains(flag)), "{field:?}");
        }
    }

    #[test]
    fn kube_proxys_file_yields_to_the_agents_own_and_that_to_flags() {
        let dir = temp();
        let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
        let theirs = file(
            &dir,
            "theirs.yaml",
            &format!("{head}hostnameOverride: theirs\noomScoreAdj: -1\nconntrack: {{min: 1}}\n"),
        );
        let ours = file(&dir, "ours.yaml", &format!("{HEAD}oomScoreAdj: -2\nconntrackMin: 2\n"));
        let args = ["--kube-proxy-config", theirs.to_str().unwrap(), "--config", ours.to_str().unwrap()];
        let text = run(&[&args[..], &["--conntrack-min", "3"]].concat()).unwrap();
        lines(&text, &["nodeName: theirs", "oomScoreAdj: -2", "conntrackMin: 3"]);
        let refused = file(&dir, "refused.yaml", &format!("{head}mode: userspace\n"));
        let error = run(&["--kube-proxy-config", refused.to_str().unwrap()]).unwrap_err().to_string();
        assert!(error.contains("mode: refused"), "{error}");
    }

    #[test]
    fn faults_are_named_with_their_place() {
        for (text, expected) in [
            (format!("{HEAD}gcPeriod: 5\nnoSuchField: 1\n"), "unknown field \"noSuchField\" at line 4"),
            (format!("{HEAD}gc-period: 5\n"), "unknown field \"gc-period\" at line 3"),
            (format!("{HEAD}gcPeriod: 5\ngcPeriod: 6\n"), "field \"gcPeriod\" is there twice at line 4"),
            (format!("{HEAD}config: x\n"), "unknown field \"config\""),
            (format!("{HEAD}gcPeriod: {{a: 1}}\n"), "for \"gcPeriod\" a string"),
            ("kind: AgentConfiguration\n".to_owned(), "missing field `apiVersion`"),
            (
                "apiVersion: lb-ebpf.io/v2\nkind: AgentConfiguration\n".to_owned(),
                "apiVersion is \"lb-ebpf.io/v2\"",
            ),
            ("apiVersion: lb-ebpf.io/v1alpha1\nkind: Other\n".to_owned(), "kind is \"Other\""),
            (String::new(), "missing field `apiVersion`"),
        ] {
            let error = parse_file(&text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn a_value_a_flag_refuses_is_the_files_fault() {
        let path = file(&temp(), "config.yaml", &format!("{HEAD}gcPeriod: 0\n"));
        let error = run(&["--config", path.to_str().unwrap()]).unwrap_err().to_string();
        assert!(error.contains("config.yaml: ") && error.contains("--gc-period"), "{error}");
    }
}
