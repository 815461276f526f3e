//! Step 2: `keadm init`.

use anyhow::Result;
use harness::product::Cloud;

use super::{Demo, story::Story};

pub(crate) async fn init(demo: &Demo, story: &mut Story) -> Result<Cloud> {
    let addresses = [demo.site.host_address()];
    let cloud = Cloud::init(&demo.run, &demo.assets, &demo.cluster, &addresses);
    let line = |cloud: &Cloud| format!("keadm init: cloudcore is ready on {}", cloud.endpoint(&demo.site));
    story.step("keadm init", line, cloud).await
}
