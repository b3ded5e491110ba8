//! Batch norm over groups of a batch: each group passes through the networks on its own.

use crate::{
    backend::{Backend, Branch, Learned, Memory, Statistics},
    encoder::{Encoder, Saved},
    method::{Mlp, SavedMlp},
    ops::{conv2d::Size, parts::tree},
};

/// How a batch is divided into groups, whose images share batch norm's statistics, and how ranks share the groups.
pub struct Groups<B> {
    /// The device, connected to the ranks that share a group.
    on: B,
    /// Number of groups in a batch, a power of two.
    count: usize,
    /// Number of groups that this rank has a share of.
    own: usize,
}

/// The output of a network for all images, and the results that the backward pass of each group needs.
type Passes<B, S> = Result<(<B as Memory>::Buffer, Vec<S>), <B as Memory>::Error>;

impl<B: Backend> Groups<B> {
    /// Groups of `images` images in a batch of `n`; None is one group. The sizes must [fit](super::fit_groups).
    pub fn new(on: &B, n: usize, images: Option<usize>) -> Self {
        let (count, size) = (n / images.unwrap_or(n), on.ranks().size());
        Self { on: on.with_ranks(on.ranks().in_groups(count)), count, own: (count / size).max(1) }
    }

    /// Features of this rank's `images` in training mode and, with `keep`, the results that the backward pass of each group
    /// needs. The running statistics become the mean of those after each group of the batch.
    ///
    /// # Errors
    /// When the device fails.
    pub fn encode(
        &self,
        encoder: &Encoder,
        branch: Branch<B>,
        images: &B::Buffer,
        size: Size,
        keep: bool,
    ) -> Passes<B, Saved<B>> {
        let (on, Branch { params, statistics }) = (&self.on, branch);
        let buffers = of_batch(statistics);
        let forward = |images: &B::Buffer, n: usize, buffers: &mut B::Buffer| {
            let mut branch = Branch { params, statistics: Statistics::Batch(buffers) };
            encoder.forward(on, &mut branch, images, Size { n, ..size }, keep)
        };
        let groups = if self.own == 1 {
            vec![forward(images, size.n, buffers)?]
        } else {
            self.each(self.own, buffers, |group, buffers| {
                forward(&self.part(images, self.own, group)?, size.n / self.own, buffers)
            })?
        };
        if self.count > 1 && !on.ranks().is_alone() {
            on.sum_over_ranks(buffers)?;
            on.scale(buffers, 1.0 / on.ranks().size() as f64)?;
        }
        let (features, saved): (Vec<_>, Vec<_>) = groups.into_iter().unzip();
        Ok((self.whole(features)?, saved.into_iter().flatten().collect()))
    }

    /// Adds the gradients from this rank's images to those of the encoder; `g` is the gradient of their features.
    ///
    /// # Errors
    /// When the device fails.
    pub fn encode_backward(
        &self,
        encoder: &Encoder,
        learned: &mut Learned<B>,
        images: &B::Buffer,
        saved: Vec<Saved<B>>,
        g: &B::Buffer,
    ) -> Result<(), B::Error> {
        let (on, len) = (&self.on, encoder.params().len());
        let mut saved = saved.into_iter();
        let mut next = || saved.next().expect("as many as there are groups");
        if self.own == 1 {
            return encoder.backward(on, learned, images, next(), g);
        }
        let params = learned.params;
        let of_group = |group: usize| {
            let mut gradients = on.zeros(len)?;
            let (images, g) = (self.part(images, self.own, group)?, self.part(g, self.own, group)?);
            encoder.backward(on, &mut Learned { params, gradients: &mut gradients }, &images, next(), &g)?;
            Ok(gradients)
        };
        on.add(learned.gradients, 0..len, &tree(self.own, of_group, |left, right| self.added(left?, right?))?)
    }

    /// Output of a head for the rows of a batch, and the results that the backward pass of each group needs. Every rank has all
    /// rows.
    ///
    /// # Errors
    /// When the device fails.
    pub fn head(&self, head: &Mlp, branch: Branch<B>, x: B::Buffer) -> Passes<B, SavedMlp<B>> {
        let (on, Branch { params, statistics }) = (&self.on, branch);
        let buffers = of_batch(statistics);
        let forward = |x: B::Buffer, buffers: &mut B::Buffer| {
            head.forward(on, &mut Branch { params, statistics: Statistics::Batch(buffers) }, x)
        };
        let groups = if self.count == 1 {
            vec![forward(x, buffers)?]
        } else {
            self.each(self.count, buffers, |group, buffers| forward(self.part(&x, self.count, group)?, buffers))?
        };
        let (y, saved) = groups.into_iter().unzip();
        Ok((self.whole(y)?, saved))
    }

    /// The gradient of a head's input, as [`Mlp::backward`] returns it.
    ///
    /// # Errors
    /// When the device fails.
    pub fn head_backward(
        &self,
        head: &Mlp,
        learned: &mut Learned<B>,
        mut saved: Vec<SavedMlp<B>>,
        g: B::Buffer,
        onto: Option<B::Buffer>,
    ) -> Result<B::Buffer, B::Error> {
        if self.count == 1 {
            return head.backward(&self.on, learned, saved.remove(0), g, onto);
        }
        let groups = saved.into_iter().enumerate().map(|(group, saved)| {
            let onto = onto.as_ref().map(|onto| self.part(onto, self.count, group)).transpose()?;
            head.backward(&self.on, learned, saved, self.part(&g, self.count, group)?, onto)
        });
        self.whole(groups.collect::<Result<_, _>>()?)
    }

    /// Runs `pass` on each of `groups` groups. Each pass starts from a copy of `buffers`. Then `buffers` become the mean of the
    /// copies.
    fn each<T>(
        &self,
        groups: usize,
        buffers: &mut B::Buffer,
        mut pass: impl FnMut(usize, &mut B::Buffer) -> Result<T, B::Error>,
    ) -> Result<Vec<T>, B::Error> {
        let mut given = Vec::with_capacity(groups);
        let of_group = |group: usize| {
            let mut moved = self.part(buffers, 1, 0)?;
            given.push(pass(group, &mut moved)?);
            Ok(moved)
        };
        let mut sum = tree(groups, of_group, |left, right| self.added(left?, right?))?;
        self.on.scale(&mut sum, 1.0 / groups as f64)?;
        *buffers = sum;
        Ok(given)
    }

    fn added(&self, mut left: B::Buffer, right: B::Buffer) -> Result<B::Buffer, B::Error> {
        let len = self.on.len(&left);
        self.on.add(&mut left, 0..len, &right)?;
        Ok(left)
    }

    /// One of several equal parts.
    fn part(&self, all: &B::Buffer, parts: usize, part: usize) -> Result<B::Buffer, B::Error> {
        let len = self.on.len(all) / parts;
        self.on.part(all, part * len..(part + 1) * len)
    }

    /// Concatenates parts.
    fn whole(&self, mut parts: Vec<B::Buffer>) -> Result<B::Buffer, B::Error> {
        if parts.len() == 1 {
            return Ok(parts.remove(0));
        }
        let mut whole = self.on.zeros(parts.iter().map(|part| self.on.len(part)).sum())?;
        let mut first = 0;
        for part in parts {
            let end = first + self.on.len(&part);
            self.on.put(&mut whole, first..end, &part)?;
            first = end;
        }
        Ok(whole)
    }
}

/// The buffers with the running statistics.
fn of_batch<'a, B: Backend>(statistics: Statistics<'a, B>) -> &'a mut B::Buffer {
    match statistics {
        Statistics::Batch(buffers) => buffers,
        Statistics::Running(_) => unreachable!("training takes the batch's statistics"),
    }
}
