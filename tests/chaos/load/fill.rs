//! An account beyond every window: more commands than anybody remembers whole, and old ones sent again.

use futures::{StreamExt as _, stream};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::{Load, Order, Pace};
use crate::history::{HOT, Wanted, Way};

/// Commands that are under way at once.
const AT_ONCE: usize = 64;

impl Load {
    /// Stores so many deposits to the first hot account, each once its place among some others is free.
    pub(crate) async fn fill(&self, count: usize, pace: Pace) {
        let fillings = (0..count).map(|_| {
            let number = self.shared.number();
            let mut random = StdRng::seed_from_u64(self.shared.seed ^ number);
            let wanted = Wanted::Deposit { amount: random.random_range(1..100), parts: 1 };
            let way = if number.is_multiple_of(2) { Way::Publish } else { Way::Queue };
            let order = self.shared.order_of(0, HOT.to_owned(), wanted, way);
            self.shared.clone().command(order, 1, pace)
        });
        stream::iter(fillings).buffer_unordered(AT_ONCE).collect::<()>().await;
    }

    /// Sends so many commands on hot accounts again, from any time before, and waits for the answers.
    pub(crate) async fn repeat_old(&self, count: usize, pace: Pace) {
        let mut random = StdRng::seed_from_u64(self.shared.seed ^ self.shared.number());
        let old = (0..count).filter_map(|_| self.shared.old_order(&mut random));
        let old: Vec<Order> = old.map(|order| Order { way: Way::Wait, ..order }).collect();
        let again = old.into_iter().map(|order| self.shared.clone().command(order, 1, pace));
        stream::iter(again).buffer_unordered(AT_ONCE).collect::<()>().await;
    }
}
