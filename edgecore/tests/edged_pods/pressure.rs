use anyhow::{Result, bail};
use crds::componentconfig::edgecore::EvictionHard;
use harness::{SiteOptions, bench, wait};

use crate::node::{Node, SOON, condition, open};

const KINDS: [&str; 3] = ["MemoryPressure", "DiskPressure", "PIDPressure"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_under_pressure_from_where_it_is_told() -> Result<()> {
    bench::run_without_product(async |bench| {
        let site = bench.site(&SiteOptions::default()).await?;
        let nothing = || "0%".parse();
        let never = || -> Result<EvictionHard> {
            Ok(EvictionHard { memory: nothing()?, disk: nothing()?, inodes: nothing()?, pids: nothing()? })
        };
        let all = || "100%".parse();
        let cases = [
            (never()?, [false, false, false]),
            (EvictionHard { memory: all()?, ..never()? }, [true, false, false]),
            (EvictionHard { disk: all()?, ..never()? }, [false, true, false]),
            (EvictionHard { inodes: all()?, ..never()? }, [false, true, false]),
            (EvictionHard { pids: all()?, ..never()? }, [false, false, true]),
        ];
        let mut store = open(site.dir())?;
        for (least, expected) in cases {
            let node = Node::start_with(&site, store, least)?;
            wait::until(&format!("a node with {expected:?} of {KINDS:?}"), SOON, async || {
                let status = node.node_status()?;
                let seen = KINDS.map(|kind| condition(&status, kind)["status"] == "True");
                if seen == expected { Ok(()) } else { bail!("{}", status["conditions"]) }
            })
            .await?;
            store = node.end().await?;
        }
        Ok(())
    })
    .await
}
