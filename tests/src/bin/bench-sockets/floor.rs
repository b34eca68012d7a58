//! Programs of the bench's own object at a node's hooks: the least that any program there costs.

use anyhow::{Context as _, Result};
use aya::{
    Ebpf, EbpfLoader,
    programs::{CgroupAttachMode, CgroupSockAddr, SchedClassifier, TcAttachType},
};
use lb_tests::{cgroup::Cgroup, netns::Namespace};

use crate::path::Path;

/// Where the agent attaches programs on a path that dials a ClusterIP.
const DEVICES: [&str; 2] = ["client", "backend"];

/// Attached as long as it lives.
pub(crate) struct Floor(#[expect(dead_code, reason = "holds the links")] Ebpf);

impl Floor {
    /// What `path` has at the devices of `node` and for the processes in `cgroup`, if it is a floor.
    pub(crate) fn attach(
        path: Path,
        object: &[u8],
        node: &Namespace,
        cgroup: &Cgroup,
    ) -> Result<Option<Self>> {
        let both: &[_] = &[TcAttachType::Ingress, TcAttachType::Egress];
        let (program, hooks, socket_programs): (_, _, &[_]) = match path {
            Path::Empty => ("floor_return_tc", both, &["floor_connect4", "floor_recvmsg4"]),
            Path::SocketRecord => ("floor_return_tc", both, &["floor_record_connect4", "floor_recvmsg4"]),
            Path::SocketStore => ("floor_return_tc", both, &["floor_store_connect4", "floor_recvmsg4"]),
            Path::Forward => ("floor_forward_tc", &both[..1], &[]),
            Path::Record => ("floor_record_tc", &both[..1], &[]),
            _ => return Ok(None),
        };
        let mut ebpf = EbpfLoader::new().load(object).context("load the measuring programs")?;
        let classifier: &mut SchedClassifier = ebpf.program_mut(program).context(program)?.try_into()?;
        classifier.load().context(program)?;
        for device in DEVICES {
            for &hook in hooks {
                node.run(|| classifier.attach(device, hook))?
                    .with_context(|| format!("attach to {device}"))?;
            }
        }
        for &name in socket_programs {
            let program: &mut CgroupSockAddr = ebpf.program_mut(name).context(name)?.try_into()?;
            program.load().context(name)?;
            let cgroup = std::fs::File::open(cgroup.path()).context("open the cgroup")?;
            program.attach(cgroup, CgroupAttachMode::Single).context(name)?;
        }
        Ok(Some(Self(ebpf)))
    }
}
