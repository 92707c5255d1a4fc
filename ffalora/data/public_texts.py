"""Texts that look like data without being anybody's: made up for this package, without looking at the data sets.

The mean of what a model makes of them stands for what it makes of any text of the kind, which says nothing of classes.
"""

from __future__ import annotations

FILM_REVIEWS = (
    "the film follows two brothers who return to their village , and it takes its time to say why .",
    "a comedy about a wedding that has more charm than jokes .",
    "the director's second feature is slow , earnest and often beautiful to look at .",
    "the plot makes little sense , but the cast seems to be having fun .",
    "an honest portrait of a woman who has lost everything but her sense of humor .",
    "it runs for two hours and feels like four .",
    "what begins as a thriller ends as a sermon .",
    "the performances are strong , the script is not .",
    "a documentary that asks hard questions and lets its subjects answer them .",
    "you may laugh once or twice , but you will not remember why .",
    "the movie never decides whether it wants to be a romance or a satire .",
    "a warm , funny and unexpectedly moving story about growing old .",
    "fans of the book will be pleased , and everyone else will be confused .",
    "the special effects are the only thing that keeps this sequel awake .",
    "a small drama with a great performance at its center .",
    "it is the kind of picture that hollywood used to make well .",
)
SHORT_MESSAGES = (
    "just got home from work and I'm so tired",
    "@friend thanks for the follow ! have a great day :)",
    "can't wait for the weekend , going to the beach with the girls",
    "my phone is broken again , what am I going to do now",
    "watching a movie with my sister , love her so much",
    "ugh , it is raining and I have to walk to school",
    "@user haha that was so funny , miss you guys",
    "good morning everyone ! coffee first",
    "I have a headache and still so much homework to do",
    "new song is out today , go and listen to it http://link",
    "so excited to see the show tonight !!",
    "why does this always happen to me :(",
    "anyone else awake ? can't sleep",
    "thank you all for the birthday wishes , you made my day",
    "lost my keys on the bus , worst day ever",
    "made pancakes for breakfast , yum",
)
PRODUCT_REVIEWS = (
    "The battery lasts for about two days if you do not use it much.",
    "I bought this camera for my daughter, and she takes it everywhere.",
    "The manual is useless, but the menus explain themselves.",
    "It stopped working after three weeks, and support never answered.",
)
EDITORIALS = (
    "The mayor's plan deserves a hearing, even from those who voted against him.",
    "Congress should not wait for the next crisis to repair the law.",
    "For years the company told its shareholders that all was well.",
    "What the report leaves out is who will pay for the roads.",
)
EVERYDAY = (
    "The train leaves at seven in the morning.",
    "We walked along the river until it got dark.",
    "He told me that the meeting was moved to Friday.",
    "The company announced its results for the third quarter.",
    "It was one of those days when nothing seemed to work.",
    "They have lived in this town for more than twenty years.",
    "What do you want to eat tonight?",
    "This is not what I had expected at all.",
    "Scientists have found a new way to store energy.",
    "The team won the game in the last minute.",
    "Prices have gone up again this month.",
    "If you have any questions, please let me know.",
    "Many users complained about the update.",
    "The government rejected the proposal on Tuesday.",
    "The water was too cold to swim.",
    "The report describes how the system works.",
)
