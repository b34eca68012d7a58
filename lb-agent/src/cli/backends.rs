//! `lb-agent backends`.

use super::{ListArgs, Output, print_json, table};
use crate::{admin, report::BackendReport};

/// Lists the backends of a running agent.
pub(super) async fn list(args: &ListArgs) -> anyhow::Result<()> {
    let backends: Vec<BackendReport> = admin::request(&args.dirs.run_dir, "/backends").await?;
    if args.output == Output::Json {
        return print_json(&backends);
    }
    let rows = backends.into_iter().map(|backend| {
        let place = if backend.local { "local" } else { "remote" };
        vec![
            backend.id.to_string(),
            backend.address,
            backend.protocol,
            backend.state,
            place.to_owned(),
            backend.node.unwrap_or_default(),
        ]
    });
    println!("{}", table(&["ID", "ADDRESS", "PROTOCOL", "STATE", "PLACE", "NODE"], rows));
    Ok(())
}
