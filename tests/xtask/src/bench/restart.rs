//! edgecore is started: how long until its node is Ready.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{Assets, progress::during};
use tokio::time::{Instant, sleep};

use super::{figure::Figure, node, reading, world::World};

const STARTS: usize = 7;
const LIMIT: Duration = Duration::from_mins(1);
const GRACE: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(5);

pub(super) async fn take(assets: &Assets) -> Result<Vec<Figure>> {
    let world = World::start(assets, 1).await?;
    let figures = during("starting edgecore again and again", figures(&world)).await;
    world.end(figures)
}

async fn figures(world: &World) -> Result<Vec<Figure>> {
    let edge = world.join(0, &[]).await?;
    let site = &world.sites[0];
    edge.kill9()?;
    let mut figures = Vec::new();
    for (clean, name) in
        [(false, "start to node Ready, after kill -9"), (true, "start to node Ready, after a clean stop")]
    {
        let (mut times, mut spent) = (Vec::new(), Duration::ZERO);
        // The first finds what the starts before have left, and does not count.
        for round in 0..=STARTS {
            let begun = Instant::now();
            let mut edgecore = edge.start(site)?;
            loop {
                match node::is_ready(&edge).await {
                    Ok(()) => break,
                    Err(error) if begun.elapsed() > LIMIT => {
                        return Err(error).with_context(|| format!("not Ready within {LIMIT:?}"));
                    }
                    Err(_) => edgecore.check_alive()?,
                }
                sleep(LOOK).await;
            }
            if round > 0 {
                times.push(begun.elapsed().as_secs_f64() * 1000.0);
                spent += reading::cpu(edgecore.pid())?;
            }
            if clean {
                let status = edgecore.terminate(GRACE)?;
                ensure!(status.success(), "edgecore ended with {status}");
            } else {
                edgecore.kill9()?;
            }
        }
        figures.push(Figure::median(name, "ms", times).cpu("edgecore", spent).note(
            "from exec until the API server has taken the node's status; enrolled before, cloud in reach, no pods",
        ));
    }
    Ok(figures)
}
