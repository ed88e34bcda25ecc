"""Sentence shapes of the worded-arithmetic generator (data only).

Every block of :data:`BLOCKS` lists the clauses of one category, separated by ``|``; a sentence shape is a clause in a
frame ("Later, ..."). A shape's id is its category, clause and frame (``gain-07-2``), whose numbers decide its split
(:func:`read_block`): append at the end of a block, since inserting would move the others to another split.

A clause that adds and one that takes away differ in more than who the owner is: "{who} takes {n} {items} from {other}"
is here, its mirror image is not. A model of this size does not learn to tell the two by the name alone.

Placeholders: ``{who}`` the owner, ``{other}`` a person not named before, ``{items}``/``{item}`` the unit,
``{new}``/``{new1}`` the unit after the sentence, ``{boxes}``/``{box}`` a container, ``{n}``/``{m}`` numbers, ``{k}`` a
small factor, ``{times}`` "twice" or "4 times", ``{part}`` "half" or "one third", ``{place}`` a place, ``{stuff}`` an
unrelated unit.
"""

HELDOUT_EVERY, HELDOUT_AT = 6, 3

BLOCKS: dict[str, str] = {
    "open": """
{who} has {n} {items}. | {who} starts with {n} {items}. | {who} owns {n} {items}.
| In the morning, {who} starts the day with {n} {items}. | At first, {who} has {n} {items}.
| {who} keeps {n} {items} in the {place}. | {who} brings {n} {items} to the {place}.
| There are {n} {items} in the room of {who}. | In the morning, {who} has {n} {items}.
| The {place} of {who} has {n} {items}. | {who} carries {n} {items} home. | On Monday, {who} has {n} {items}.
| {who} counts the {items} and there are {n}. | {who} counts {n} {items} at home. | {n} {items} belong to {who}.
| At home, {who} keeps {n} {items}. | {who} begins the day with {n} {items}.
| On the table of {who} there are {n} {items}. | At the start, {who} owns {n} {items}.
| A day at the {place} starts with {n} {items} for {who}. | {who} takes {n} {items} to the {place}.
| At the {place}, there are {n} {items} that belong to {who}. | {who} arrives with {n} {items}.
| {who} is at the {place} with {n} {items}. | When the day begins, {who} has {n} {items}.
""",
    "open_money": """
{who} has {n} {items} in a purse. | {who} starts the day with {n} {items} to spend. | {who} saved {n} {items}.
| {who} has saved {n} {items} to spend. | {who} gets {n} {items} from a job.
| There are {n} {items} in the purse of {who}. | {who} comes to the {place} with {n} {items}.
| The purse of {who} has {n} {items}. | At first, there are {n} {items} in the bank of {who}.
| A purse with {n} {items} comes from the bank to {who}. | {who} takes {n} {items} from the bank.
| A job at the {place} gives {who} {n} {items}.
""",
    "open_sum": """
{who} has {n} red {items} and {m} blue {items}. | {who} has {n} new {items} and {m} old {items}.
| {who} buys {n} {items} on Monday and {m} {items} on Tuesday.
| On Monday {who} finds {n} {items}, and on Tuesday {who} finds {m} {items}.
| {who} finds {n} {items} in the morning and {m} more in the evening.
| There are {n} small {items} and {m} big {items} in the {place} of {who}.
| {who} gets {n} {items} from a friend and {m} {items} from a cousin.
| {who} keeps {n} {items} at home and {m} {items} at the {place}.
| {who} counts {n} green {items} and {m} white {items}. | {who} has {n} small {items} and {m} big {items} at home.
| {who} owns {n} {items}, and a cousin adds {m} {items} to them.
| On Monday {who} buys {n} {items}, and on Tuesday {who} buys {m} more.
| One shelf of {who} has {n} {items} and another has {m}.
| {who} picks {n} {items} in the evening after picking {m} in the morning.
| {who} brings {n} red {items} and {m} green {items}.
| From a friend {who} gets {n} {items}, and from a cousin {m} more.
| {who} has {n} old {items} on one shelf and {m} new {items} on another.
| {who} has {n} {items} in one hand and {m} in another. | {who} collects {n} white {items} and {m} blue {items}.
| {n} {items} are at home and {m} {items} are at the {place}, all owned by {who}.
""",
    "open_mul": """
{who} has {k} {boxes} with {n} {items} in each {box}. | {who} buys {k} {boxes} of {items}, each with {n} {items} inside.
| {who} makes {n} {items} every day for {k} days. | {who} makes {n} {items} a day and works for {k} days.
| There are {k} {boxes} in the {place} of {who}, and each {box} holds {n} {items}.
| {who} puts {n} {items} in each of {k} {boxes}. | {who} fills {k} {boxes} with {n} {items} each.
| For {k} days, {who} collects {n} {items} every day. | {who} opens {k} {boxes} and finds {n} {items} in each one.
| {who} has {k} {boxes}, and every {box} has {n} {items} inside. | {k} friends bring {n} {items} each to {who}.
| {who} works for {k} days and makes {n} {items} each day.
| Every week {who} collects {n} {items}, and this goes on for {k} weeks.
| {who} gets {n} {items} from each of {k} friends. | {who} lays out {k} rows with {n} {items} in each row.
| {who} puts {n} {items} in each of {k} rows. | {who} puts {items} in {k} rows of {n}.
| Each of {k} {boxes} that {who} owns holds {n} {items}. | {who} collects {n} {items} a week for {k} weeks.
| {k} friends each give {n} {items} to {who}.
""",
    "gain": """
{who} buys {n} more {items}. | {who} finds {n} {items}. | {other} gives {who} {n} {items} for work.
| {who} gets {n} more {items} from {other}. | {who} receives {n} {items} as a gift.
| A friend brings {who} {n} more {items}. | Then {who} gets {n} {items} from {other}. | {who} picks up {n} more {items}.
| {who} is given {n} {items} by {other}. | {who} finds {n} more {items} in the {place}.
| {other} adds {n} {items} to those of {who}. | {who} collects {n} other {items}. | {other} sends {who} {n} {items}.
| Later, {who} buys {n} {items} at the {place}. | {who} makes {n} more {items}.
| {who} then receives {n} more {items} from a friend. | {who} wins {n} {items} in a game.
| {other} shares {n} {items} with {who}. | At the {place}, {who} picks up {n} {items}.
| {who} borrows {n} {items} from {other}. | A gift of {n} {items} arrives for {who}.
| At the {place}, {who} wins {n} more {items}. | {who} takes {n} {items} from {other}.
| {other} lends {who} {n} {items}. | After that, {who} adds {n} new {items}.
| In a shop, {who} buys another {n} {items}. | {who} goes to the {place} and collects {n} {items}.
| {who} gets another {n} {items} at the {place}. | From {other}, {who} receives {n} {items}.
| {n} more {items} are sent to {who}. | {who} also picks {n} {items}. | Then {other} brings {n} {items} for {who}.
| Later, {who} finds another {n} {items}. | {other} makes {n} {items} and gives them to {who}.
| A box with {n} more {items} arrives for {who}. | {who} takes back {n} {items} lent to {other}.
""",
    "loss": """
{who} gives {n} {items} to {other}. | {who} loses {n} {items}. | {who} gives away {n} {items}.
| {who} then loses {n} {items} at the {place}. | {other} steals {n} {items} from {who}. | {who} throws away {n} {items}.
| {n} {items} break, and {who} throws them away. | {who} sends {n} {items} to {other}. | {who} uses {n} of the {items}.
| {other} asks for {n} {items}, and {who} gives them. | {who} drops {n} {items} in the river.
| Later, {who} gives {other} {n} {items}.
| {who} donates {n} {items} to the {place}. | {n} of the {items} get lost. | {who} hands {n} {items} to {other}.
| {who} gives {n} of the {items} away at the {place}. | {who} lends {n} {items} to {other}.
| Then {n} {items} of {who} break. | {other} walks away with {n} {items} of {who}.
| {who} leaves {n} {items} at the {place}.
| {who} passes {n} {items} on to {other}. | Then {other} takes {n} of the {items} of {who}.
| {n} of the {items} are lost on the way. | {who} uses up {n} {items} at the {place}.
| {who} leaves {n} of the {items} behind. | Then {who} donates {n} {items}. | A thief takes {n} {items} from {who}.
| {who} uses up {n} of the {items}. | {who} removes {n} {items}. | {n} {items} fall in the river and are lost.
| {who} returns {n} {items} to {other}. | {who} sends away {n} of the {items}. | {n} {items} are removed by {other}.
| {who} throws {n} of the {items} in the river. | On the way, {who} drops {n} {items} and leaves them behind.
| {other} needs {n} {items} and {who} hands them over.
""",
    "eat": """
{who} eats {n} {items}. | {n} of the {items} are eaten by {who}. | {other} eats {n} of the {items} of {who}.
| {other} eats {n} {items} that belong to {who}. | {n} {items} go bad, and {who} throws them out.
| For lunch, {who} eats {n} of the {items}. | A bird eats {n} of the {items}.
| At lunch, {n} {items} of {who} are eaten. | {n} {items} that belong to {who} go bad.
| For lunch, {n} {items} are eaten by {other}. | {who} feeds {n} {items} to a bird.
| {other} and a friend eat {n} of the {items}.
""",
    "earn": """
{who} earns {n} {items}. | {who} gets {n} {items} for a job. | {who} is paid {n} {items} for work at the {place}.
| {who} earns {n} more {items} at the {place}. | {other} pays {who} {n} {items}.
| {who} finds {n} {items} on the street. | {who} wins {n} {items}. | A job brings {who} {n} more {items}.
| {other} gives {who} {n} {items} for a job. | For work, {other} pays {n} {items} to {who}.
| {who} saves another {n} {items}. | {who} gets {n} {items} as a gift. | {n} {items} from {other} arrive for {who}.
| A gift of {n} {items} comes from {other}. | {who} is given {n} more {items}. | {who} is paid {n} {items} by {other}.
| {who} sells a lamp for {n} {items}. | At the {place}, {who} sells a coat for {n} {items}.
""",
    "spend": """
{who} spends {n} {items}. | {who} pays {n} {items} for a coat. | {who} buys a lamp for {n} {items}.
| {who} spends {n} {items} on a lamp. | {who} loses {n} {items} on the street.
| {who} owes {other} {n} {items} and pays.
| {who} gives {n} {items} to {other} for a lamp. | A coat costs {n} {items}, and {who} buys it.
| {who} buys lunch for {n} {items} at the {place}. | {who} pays {n} {items} to {other} for lunch.
| A ticket costs {who} {n} {items}. | {who} spends {n} {items} at the {place}.
| {who} buys a ticket that costs {n} {items}. | For a ticket, {who} pays {n} {items}.
| {who} gives away {n} {items} at the bank. | At the {place}, {who} spends {n} {items} on a coat.
| {who} lends {other} {n} {items} for lunch. | {n} {items} fall out of the purse of {who}.
""",
    "scale": """
{who} works until there are {times} as many {items}. | {who} ends up with {times} as many {items} as before.
| The number of {items} of {who} becomes {times} as large. | {who} works and ends up with {times} the number of {items}.
| After a week, {who} has {times} as many {items}. | A lucky day leaves {who} with {times} as many {items}.
| {who} is lucky and now has {times} as many {items}. | {who} collects until the number of {items} is {times} as large.
| By the evening, {who} has {times} as many {items} as before.
| After a lucky week, the number of {items} is {times} as large.
| Now {who} has {times} the number of {items} from before. | Soon the {items} of {who} grow to {times} as many.
""",
    "split": """
{who} splits the {items} into {k} equal piles and keeps one pile.
| {who} makes {k} equal groups of {items} and keeps one group. | {who} divides the {items} by {k} and keeps one part.
| {who} divides the {items} into {k} equal groups and keeps one of them.
| {who} sorts the {items} into {k} equal piles and gives away all but one pile.
| {who} keeps only {part} of the {items}. | The {items} are divided into {k} equal parts, and {who} keeps one part.
| In the end {who} keeps {part} of the {items} and gives away the others.
| {who} makes {k} equal piles of {items} and gives away all but one.
| {who} makes {k} equal parts of the {items} and gives away all but one.
| {who} has to give away all but {part} of the {items}.
| The {items} are sorted into {k} equal groups and {who} keeps just one group.
""",
    "pack": """
{who} packs the {items} into {new} of {k}. | {who} puts {k} {items} in each {new1} until none are left.
| {who} fills {new} with {k} {items} each, using all of them.
| {who} packs {k} {items} in each {new1} until none are left. | All the {items} go into {new}, with {k} in each {new1}.
| {who} packs all the {items}, and each {new1} takes {k} {items}.
| With {k} {items} in each {new1}, {who} packs all the {items}. | {who} sorts the {items} into {new} that hold {k} each.
| {who} puts all the {items} into {new} of {k}. | {who} puts all the {items} into {new} that hold {k} each.
| Each {new1} holds {k} {items}, and {who} packs all the {items} into {new}.
| {who} needs one {new1} for every {k} {items} and packs all of them.
""",
    "contain": """
Each {item} holds {k} {new}. | Every {item} has {k} {new} inside. | There are {k} {new} in each {item}.
| Inside each {item} there are {k} {new}. | {who} puts {k} {new} in each {item}.
| {who} fills every {item} with {k} {new}. | {who} opens each {item} and finds {k} {new} inside.
| In every {item}, {who} finds {k} {new}. | {who} packs {k} {new} into every {item}.
| {who} opens every {item} and there are {k} {new} in each. | {k} {new} are inside each {item} of {who}.
| Every {item} of {who} holds {k} {new}.
""",
    "price": """
{who} sells all the {items} for {k} {new} each. | {who} sells each {item} for {k} {new}.
| {who} gets {k} {new} for every {item} and sells them all. | {who} sells every {item} at a price of {k} {new}.
| At the {place}, {who} sells all the {items} at {k} {new} each.
| {other} buys all the {items} from {who} and pays {k} {new} for each.
| Each {item} sells for {k} {new}, and {who} sells them all.
| The price of one {item} is {k} {new}, and {who} sells all the {items}.
| {other} pays {who} {k} {new} for each {item} and takes all of them.
| {other} buys every {item} from {who} at a price of {k} {new} each.
| All the {items} of {who} are sold for {k} {new} each.
| For each {item} sold, {who} gets {k} {new}, and all of them are sold.
""",
    "ask": """
How many {items} does {who} have now? | How many {items} does {who} have? | How many {items} are there now for {who}?
| How many {items} does {who} own now? | How many {items} does {who} own?
| What is the number of {items} that {who} has? | What number of {items} does {who} have in the end?
| In the end, how many {items} does {who} have? | Find the number of {items} that {who} owns now.
| In the end, what is the number of {items} that {who} owns? | After all this, how many {items} belong to {who}?
| Count the {items} of {who}. How many are there? | Tell how many {items} {who} has at the end.
| How many {items} belong to {who} in the end? | Work out how many {items} {who} has now.
| Work out how many {items} belong to {who} at the end. | Find how many {items} {who} has after this.
| Can you tell how many {items} {who} has? | With how many {items} does {who} end up?
| How many {items} does {who} end up with? | What is the final number of {items} of {who}?
| Find the final number of {items} that belong to {who}. | At the end of the day, how many {items} does {who} own?
| How many {items} are with {who} at the end of the day?
""",
    "noise": """
{other} has {n} {stuff}. | {who} is {n} years old. | The {place} is {n} years old. | {other} is {n} years old.
| {other} lives {n} miles from the {place}. | The {place} has {n} windows.
| {other} also owns {n} {stuff}, but they do not matter here. | There are {n} {stuff} at the {place}.
| {who} walks {n} miles to the {place}. | {other} lives at the {place} and has {n} {stuff}.
| The bus to the {place} is {n} minutes late. | {other} sees {n} birds. | It takes {n} minutes to walk to the {place}.
| {who} sees {n} people on the bus. | {other} reads {n} pages of a story.
| It takes {n} minutes to walk to the {place}, but {who} takes the bus. | It is {n} degrees outside.
| There are {n} people at the {place}. | {other} sleeps for {n} minutes. | A bird sits on one of {n} trees.
| There are {n} trees outside. | {who} walks for {n} minutes. | The bus has {n} seats.
| {other} reads a story about {n} birds. | {who} reads for {n} minutes on the bus. | {other} walks {n} miles a week.
| Outside, {other} sees {n} trees. | The story has {n} pages.
""",
}


# What may stand before a clause. A sentence shape is a clause in a frame; the first frame is none.
_STORY_FRAMES = (
    "", "Then ", "Later, ", "After that, ", "The next day, ", "In the afternoon, ", "That evening, ", "Soon after, ",
    "A week later, ", "On Friday, ", "Some time later, ", "Next, ",
)  # fmt: skip
_OPEN_FRAMES = ("", "One day, ", "On Sunday, ", "This morning, ", "To begin with, ", "Today, ", "Here is a story: ")
_ASK_FRAMES = ("", "So, ", "Here is the question: ", "Now, ", "Think about it: ", "To finish, ", "Please answer: ")
_NOISE_FRAMES = ("", "By the way, ", "Meanwhile, ", "Also, ", "As it happens, ", "It is also true that ")
_TIMED = ("Then", "Later", "After", "Now", "Soon", "By", "In the", "On Monday", "At first", "When", "At the start")
"""Beginnings of clauses that say themselves when they happen, so that no frame is put before them."""


def read_block(category: str) -> tuple[tuple[str, str, str], ...]:
    """The ``(id, text, split)`` of every sentence shape of one category; raises ``KeyError`` for an unknown category.

    A clause is heard in both splits, its shapes are not: of the frames of each clause one in six is ``"heldout"``. A
    clause without frames is ``"train"``, because a sentence never heard in any form cannot be understood.
    """
    shapes = []
    for position, part in enumerate(BLOCKS[category].split("|")):
        clause = " ".join(part.split())
        frames = ("",) if clause.startswith(_TIMED) else _frames(category)
        for place, frame in enumerate(frames):
            split = "heldout" if len(frames) > 1 and (position + place) % HELDOUT_EVERY == HELDOUT_AT else "train"
            text = frame + (clause[0].lower() + clause[1:] if frame else clause)
            shapes.append((f"{category}-{position:02d}-{place}", text, split))
    return tuple(shapes)


def _frames(category: str) -> tuple[str, ...]:
    if category.startswith("open"):
        return _OPEN_FRAMES
    return {"ask": _ASK_FRAMES, "noise": _NOISE_FRAMES}.get(category, _STORY_FRAMES)
