//! `lb-agent events`, and the same in the log of `run --events-sample`: sampled verdicts from the ring buffer.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
};

use anyhow::Context as _;
use aya::maps::{Array, Map, MapData, RingBuf};
use clap::Args;
use lb_common::{event::Event, maps, settings::Settings, verdict::Verdict};
use tokio::io::{Interest, unix::AsyncFd};

use super::Dirs;

/// Flags of `events`.
#[derive(Debug, Args)]
pub(super) struct EventsArgs {
    #[command(flatten)]
    dirs: Dirs,
    /// Report one in N verdicts.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    sample: u32,
    /// Report this service port only, by the id that `lb-agent services` shows. Default: all.
    #[arg(long, default_value_t = 0, value_name = "ID")]
    service_port: u32,
    /// Report drops and refusals only.
    #[arg(long)]
    drops: bool,
    /// Stop after this many events. Default: at Ctrl-C.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

/// Turns sampling on, prints events until Ctrl-C or `--count`, and restores the setting.
pub(super) async fn follow(args: &EventsArgs) -> anyhow::Result<()> {
    let dir = args.dirs.maps();
    let mut events = open_events(&dir)?;
    let mut settings = open_settings(&dir)?;
    let before = settings.get(&0, 0).context("read SETTINGS")?;
    let wanted = Settings {
        events_sample: args.sample,
        events_service_port: args.service_port,
        events_drops_only: u32::from(args.drops),
        ..before
    };
    settings.set(0, wanted, 0).context("write SETTINGS")?;
    let result = tokio::select! {
        result = read(&mut events, args.count, |event| println!("{}", line(event))) => result,
        signal = tokio::signal::ctrl_c() => signal.context("wait for Ctrl-C"),
    };
    settings.set(0, before, 0).context("restore SETTINGS")?;
    result
}

/// Gives the programs their settings, and logs the verdicts these ask for as long as the runtime lives.
pub(super) fn start_log(dir: &Path, settings: Settings) -> anyhow::Result<()> {
    open_settings(dir)?.set(0, settings, 0).context("write SETTINGS")?;
    if settings.events_sample == 0 {
        return Ok(());
    }
    let mut events = open_events(dir)?;
    tokio::spawn(async move {
        if let Err(error) = read(&mut events, None, |event| tracing::info!("{}", line(event))).await {
            tracing::warn!("events: {error:#}");
        }
    });
    Ok(())
}

fn open_settings(dir: &Path) -> anyhow::Result<Array<MapData, Settings>> {
    let data = MapData::from_pin(dir.join(maps::SETTINGS))
        .with_context(|| format!("open SETTINGS in {}", dir.display()))?;
    Ok(Array::try_from(Map::Array(data))?)
}

fn open_events(dir: &Path) -> anyhow::Result<AsyncFd<RingBuf<MapData>>> {
    let data = MapData::from_pin(dir.join(maps::EVENTS))
        .with_context(|| format!("open EVENTS in {}", dir.display()))?;
    let ring = RingBuf::try_from(Map::RingBuf(data))?;
    // SAFETY: the ring buffer owns the map whose descriptor `as_fd` returns, the same one until it is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }?)
}

async fn read(
    events: &mut AsyncFd<RingBuf<MapData>>,
    count: Option<u64>,
    mut visit: impl FnMut(&Event),
) -> anyhow::Result<()> {
    let mut left = count.unwrap_or(u64::MAX);
    while left > 0 {
        let mut ready = events.readable_mut().await?;
        while let Some(record) = ready.get_inner_mut().next() {
            if let Ok(event) = bytemuck::try_pod_read_unaligned(&record) {
                visit(&event);
                left -= 1;
            }
            if left == 0 {
                break;
            }
        }
        ready.clear_ready();
    }
    Ok(())
}

fn line(event: &Event) -> String {
    let verdict = Verdict::from_code(event.verdict).map_or("?", Verdict::name);
    let end = |bytes: [u8; 16], port: u16| SocketAddr::new(address(event.family, bytes), port);
    format!(
        "{:.6} {verdict} {} {} -> {} service-port={} backend={} ifindex={}",
        event.time_ns as f64 / 1e9,
        event.protocol.name(),
        end(event.src, event.src_port.get()),
        end(event.dst, event.dst_port.get()),
        event.service_port.0,
        event.backend.0,
        event.ifindex
    )
}

fn address(family: u8, bytes: [u8; 16]) -> IpAddr {
    if family == 4 {
        let [a, b, c, d, ..] = bytes;
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    } else {
        IpAddr::V6(Ipv6Addr::from(bytes))
    }
}

#[cfg(test)]
mod tests {
    use lb_common::family::{Be16, Protocol};

    use super::*;

    #[test]
    fn an_event_is_one_line() {
        let mut event = Event {
            time_ns: 1_500_000_000,
            verdict: Verdict::SourceRange as u32,
            family: 4,
            protocol: Protocol::TCP,
            src_port: Be16::new(4711),
            dst_port: Be16::new(80),
            ..Event::default()
        };
        event.src[..4].copy_from_slice(&[192, 0, 2, 1]);
        event.dst[..4].copy_from_slice(&[198, 51, 100, 1]);
        assert_eq!(
            line(&event),
            "1.500000 drop-source-range TCP 192.0.2.1:4711 -> 198.51.100.1:80 service-port=0 backend=0 ifindex=0"
        );
    }
}
