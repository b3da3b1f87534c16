//! Spending a budget where it costs least.
//!
//! Whatever can shrink makes an offer: what it keeps and what it loses at each of its sizes. The sizes are chosen greedily
//! along the lower convex hulls of the offers, always where the error per parameter removed is least; up to the last step
//! this is the best that any choice of sizes on the hulls can do.

/// One thing at all sizes that it can take, the smallest first; at the last, its present size, nothing is lost.
pub(crate) struct Offer {
    /// Parameters at each size, ascending.
    pub(crate) params: Vec<u64>,
    /// Error at each size.
    pub(crate) errors: Vec<f64>,
}

impl Offer {
    /// Error gained for each parameter removed between two sizes.
    fn slope(&self, from: usize, to: usize) -> f64 {
        (self.errors[to] - self.errors[from]) / (self.params[from] - self.params[to]) as f64
    }

    /// The sizes, descending from the last, at which the lower convex hull of error against removed parameters bends.
    pub(crate) fn hull(&self) -> Vec<usize> {
        let mut hull: Vec<usize> = Vec::new();
        for at in (0..self.params.len()).rev() {
            // A corner above the line from its neighbour before to the new point is none. Those on the line stay, so that
            // of a long edge that does not fit, a part can be taken: of units that cost nothing, for one.
            while hull.len() >= 2
                && self.slope(hull[hull.len() - 2], hull[hull.len() - 1]) > self.slope(hull[hull.len() - 2], at)
            {
                hull.pop();
            }
            hull.push(at);
        }
        hull
    }
}

/// One offer on its way down.
struct Descent<'a> {
    offer: &'a Offer,
    /// The size it has come to.
    at: usize,
    /// Corners still ahead, the next one last.
    corners: Vec<usize>,
}

impl<'a> Descent<'a> {
    fn new(offer: &'a Offer) -> Self {
        let mut corners = offer.hull();
        corners.reverse();
        let at = corners.pop().unwrap_or(0);
        Self { offer, at, corners }
    }

    /// Parameters removed on the way to a size.
    fn removed(&self, to: usize) -> f64 {
        (self.offer.params[self.at] - self.offer.params[to]) as f64
    }
}

/// The size of each offer at which the errors of all together are least, for about `excess` parameters removed, and how
/// many of these are left over, less than none if more were removed.
///
/// Whole edges of the hulls are taken, cheapest first, while they fit; what is left is made up in single steps, cheapest
/// first, as long as they bring the parameters closer to the target. Ties go to the earlier offer.
pub(crate) fn descend(offers: &[Offer], mut excess: f64) -> (Vec<usize>, f64) {
    let mut descents: Vec<Descent<'_>> = offers.iter().map(Descent::new).collect();
    while let Some(index) =
        cheapest(&descents, |descent| descent.corners.last().copied().filter(|&to| descent.removed(to) <= excess))
    {
        let corner = descents[index].corners.pop().unwrap_or_default();
        excess -= descents[index].removed(corner);
        descents[index].at = corner;
    }
    // A step of less than twice the excess brings the parameters closer to the target.
    while let Some(index) =
        cheapest(&descents, |descent| descent.at.checked_sub(1).filter(|&to| descent.removed(to) < 2.0 * excess))
    {
        let next = descents[index].at - 1;
        excess -= descents[index].removed(next);
        descents[index].at = next;
    }
    (descents.iter().map(|descent| descent.at).collect(), excess)
}

/// The offer whose `next` size costs least for each parameter removed, the first of equals.
fn cheapest(descents: &[Descent<'_>], next: impl Fn(&Descent<'_>) -> Option<usize>) -> Option<usize> {
    let price = |descent: &Descent<'_>, to: usize| descent.offer.slope(descent.at, to);
    let prices = descents.iter().enumerate().filter_map(|(index, d)| Some((index, price(d, next(d)?))));
    prices.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(index, _)| index)
}
